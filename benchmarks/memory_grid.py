"""Configurations whose memory is predicted and measured: models drawn at random, trained by our own engine.

`play` runs one on the device of its process; `model_run` is the same configuration as the planner sees it. The grid is
every way of training in `WAYS` for every family, with sizes of the model and of the micro-batch drawn from a seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.models.spec import LoraSpec, ModelSpec
from openrlhf_ext.plan.types import Lora, ModelRun, ModelShape, Pass

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
WINDOWED = ("mistral", "gemma2", "gemma3_text")


@dataclass(frozen=True, slots=True)
class Sizes:
    """`window`: the sliding window of a family that has them. `bucket`: numbers of the gradient bucket."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 352
    vocab: int = 1024
    tied: bool = True
    window: int | None = None

    @property
    def bucket(self) -> int:
        """As DeepSpeed's 100 M numbers are to a model of 4 B: the whole of it would drown the models of this grid."""
        layer = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads) + 3 * self.hidden * self.ffn
        return (self.layers * layer + self.vocab * self.hidden) // 40


@dataclass(frozen=True, slots=True)
class Configuration:
    """`lengths`: tokens of each row of a micro-batch; the part `learned` of a row, at its end, are actions."""

    name: str
    family: str
    sizes: Sizes = Sizes()
    kind: str = "causal_lm"
    objective: str = "sft"  # sft, ppo, value, pairs (chosen rows and rejected ones), none (a frozen model)
    lengths: tuple[int, ...] = (96, 96)
    learned: float = 0.5
    micro_batches: int = 2
    dtype: str = "bf16"
    zero_stage: int = 2
    checkpointing: bool = False
    reentrant: bool = False
    packing: bool = False
    attention: str = "sdpa"
    lora: LoraSpec | None = None
    load_in_4bit: bool = False
    chunk: int = 1024
    entropy: bool = False
    temperature: float = 1.0

    @property
    def trains(self) -> bool:
        return self.objective != "none"

    @property
    def packed(self) -> bool:
        return self.packing and len(self.lengths) > 1


WAYS: dict[str, dict[str, Any]] = {
    "full, float32": {"dtype": "fp32", "zero_stage": 0},
    "full, packed": {"zero_stage": 1, "packing": True, "micro_batches": 3},
    "policy, entropy": {"objective": "ppo", "entropy": True, "temperature": 0.7, "chunk": 96, "learned": 0.8},
    "full, checkpointing, one micro-batch": {"zero_stage": 3, "checkpointing": True, "micro_batches": 1},
    "full, re-entrant": {"dtype": "fp32", "checkpointing": True, "reentrant": True, "objective": "ppo", "chunk": 64},
    "one micro-batch": {"zero_stage": 1, "micro_batches": 1, "learned": 1.0},
    "LoRA": {"lora": LoraSpec(16)},
    "LoRA, dropout, checkpointing": {
        "lora": LoraSpec(8, target_modules=("q_proj", "v_proj"), dropout=0.1), "checkpointing": True, "zero_stage": 3,
    },
    "QLoRA pairs": {"lora": LoraSpec(32), "load_in_4bit": True, "checkpointing": True, "objective": "pairs"},
    "critic": {"kind": "value", "objective": "value", "zero_stage": 2},
    "preference model": {"kind": "reward", "objective": "pairs", "zero_stage": 3, "checkpointing": True},
    "eager attention": {"attention": "eager", "zero_stage": 1},
    "reference, packed": {"objective": "none", "packing": True, "chunk": 256},
}  # fmt: skip


def grid(seed: int = 1) -> Iterator[Configuration]:
    draw = random.Random(seed)
    for family in FAMILIES:
        for way, fields in WAYS.items():
            rows, longest = draw.choice((1, 2, 2, 4, 6)), draw.choice((64, 128, 192, 256, 384))
            rows += rows % 2 if fields.get("objective") == "pairs" else 0
            lengths = tuple(longest if row == 0 else draw.randint(longest // 3, longest) for row in range(rows))
            yield Configuration(f"{family}: {way}", family, sizes(draw, family, longest), lengths=lengths, **fields)


def sizes(draw: random.Random, family: str, longest: int) -> Sizes:
    hidden, kv_heads, head_dim = draw.choice((128, 192, 256, 384)), draw.choice((1, 2, 4)), draw.choice((32, 64))
    return Sizes(
        hidden=hidden,
        layers=draw.randint(2, 6),
        heads=kv_heads * draw.choice((1, 2, 4)),
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=16 * round(hidden * draw.choice((2, 2.75, 4)) / 16),
        vocab=draw.choice((1024, 2048, 8192, 16384)),
        tied=family.startswith("gemma") or draw.random() < 0.5,
        window=draw.choice((32, longest // 2, 4096)) if family in WINDOWED else None,
    )


def hf_config(c: Configuration) -> Any:
    """The architecture, as transformers knows it."""
    from transformers import AutoConfig

    s = c.sizes
    given: dict[str, Any] = {
        "vocab_size": s.vocab, "hidden_size": s.hidden, "intermediate_size": s.ffn, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "max_position_embeddings": 8192, "tie_word_embeddings": s.tied,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    if c.family.startswith("gemma"):
        given["query_pre_attn_scalar"] = s.head_dim
    if s.window is not None:
        given["sliding_window"] = s.window
    return AutoConfig.for_model(c.family, **given)


def model_run(c: Configuration, shape: ModelShape, *, gpu: bool = False) -> ModelRun:
    """The configuration as the planner sees it: its largest micro-batch, on one rank."""
    rows, longest, action_BA = len(c.lengths), max(c.lengths), micro_batch(c).action_BA
    one = Pass(
        rows=rows,
        length=longest,
        tokens=sum(c.lengths) if c.packed else rows * longest,
        selected=rows if c.kind == "reward" else int(action_BA.sum()),
        backward=c.trains,
        entropy=c.entropy,
        extra_columns=len(columns_of(c)),
        tempered=c.temperature != 1.0,
    )
    lora = None if c.lora is None else Lora(c.lora.rank, c.lora.alpha, c.lora.target_modules, c.lora.dropout)
    return ModelRun(
        "model", shape, c.kind, c.trains, 1, "gpus", dtype=c.dtype, zero_stage=c.zero_stage if c.trains else 0,
        lora=lora, load_in_4bit=c.load_in_4bit, gradient_checkpointing=c.checkpointing, reentrant=c.reentrant,
        packing=c.packing, attention=c.attention, logprob_chunk=c.chunk, passes=(one,), gpu=gpu,
        accumulates=c.micro_batches > 1,
    )  # type: ignore[arg-type]  # fmt: skip


def write_model(c: Configuration, folder: Path) -> None:
    """Random weights and a tokenizer, as a folder that our loaders take."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(1)
    config = hf_config(c)
    if c.kind == "reward":
        config.num_labels = 1
    auto = AutoModelForSequenceClassification if c.kind == "reward" else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)}, unk_token="w3"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(folder)


def build_engine(c: Configuration, path: str, device: Any) -> Any:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine
    from openrlhf_ext.engine.spec import EngineSpec

    model = ModelSpec(
        path=path, dtype=c.dtype, attn_implementation=c.attention, gradient_checkpointing=c.checkpointing,
        reentrant=c.reentrant, packing=c.packing, logprob_chunk=c.chunk, kind=c.kind, lora=c.lora,
        load_in_4bit=c.load_in_4bit,
    )  # type: ignore[arg-type]  # fmt: skip
    spec = EngineSpec(zero_stage=c.zero_stage, dtype=c.dtype, trainable=c.trains, total_steps=8)  # type: ignore[arg-type]
    return DeepSpeedEngine(model, spec, device)


def micro_batch(c: Configuration) -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    lengths_B, longest = torch.tensor(c.lengths), max(c.lengths)
    tokens_BT = torch.randint(3, c.sizes.vocab, (len(c.lengths), longest), generator=generator)
    position_T = torch.arange(longest)
    tokens_BT[position_T >= lengths_B[:, None]] = 2
    first_B = torch.tensor([length - max(1, math.ceil(c.learned * (length - 1))) for length in c.lengths])
    action_BA = (position_T[1:] >= first_B[:, None]) & (position_T[1:] < lengths_B[:, None])
    columns = {name: torch.randn(action_BA.shape, generator=generator) * action_BA for name in columns_of(c)}
    return MicroBatch(tuple(range(len(c.lengths))), tokens_BT, lengths_B, action_BA, columns)


def columns_of(c: Configuration) -> tuple[str, ...]:
    return {"ppo": ("advantages", "sampler_logp", "old_logp"), "value": ("values", "returns")}.get(c.objective, ())


@dataclass(frozen=True, slots=True)
class Pairs:
    """-log sigmoid(chosen - rejected), of scores or of summed log-probs (DPO's reference is a column, not a model)."""

    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(self, output: Any, micro: MicroBatch, denominators: Denominators) -> tuple[Tensor, dict[str, Any]]:
        chosen_P, rejected_P = output[0].sum(1).chunk(2)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen_P - rejected_P)).sum() / denominators.sequences, {}


def objective_of(c: Configuration) -> Any:
    from openrlhf_ext.trainers.objectives import PolicyObjective, SftObjective, ValueObjective

    if c.objective == "ppo":
        return PolicyObjective(entropy_coef=0.01 if c.entropy else None, temperature=c.temperature)
    return {"sft": SftObjective(), "value": ValueObjective(), "pairs": Pairs()}[c.objective]


def play(c: Configuration, engine: Any) -> None:
    """One optimizer step of the configuration, or one pass of a frozen model."""
    micro = micro_batch(c)
    if not c.trains:
        engine.forward(micro, c.temperature)
        return
    objective, denominators = objective_of(c), Denominators(float(micro.action_BA.sum()), float(len(micro.rows)))
    for _ in range(c.micro_batches):
        engine.forward_backward(micro, objective, denominators)
    engine.step()
