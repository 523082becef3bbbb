"""Configurations whose memory is predicted and measured: models drawn at random, trained by our own engine.

`measure` runs one on the device of this process; `planned` is the same configuration as the planner sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.models.spec import LoraSpec, ModelSpec

SHAPE = {"hidden": 256, "layers": 3, "heads": 8, "kv_heads": 2, "head_dim": 32, "ffn": 704, "vocab": 2048}


@dataclass(frozen=True, slots=True)
class Configuration:
    """`lengths`: tokens of each row of a micro-batch; the part `learned` of a row at its end are actions."""

    name: str
    family: str
    shape: dict[str, int] = field(default_factory=dict)
    kind: str = "causal_lm"
    objective: str = "sft"  # sft, ppo, value, pairs (scores of chosen and rejected rows), none
    lengths: tuple[int, ...] = (96, 96)
    learned: float = 0.5
    micro_batches: int = 2
    dtype: str = "bf16"
    zero_stage: int = 2
    grad_accum_dtype: str | None = None
    checkpointing: bool = False
    reentrant: bool = False
    packing: bool = False
    attention: str = "sdpa"
    lora: LoraSpec | None = None
    load_in_4bit: bool = False
    chunk: int = 1024
    entropy: bool = False
    temperature: float = 1.0
    tied: bool = True
    window: int | None = None

    @property
    def trains(self) -> bool:
        return self.objective != "none"


def hf_config(c: Configuration) -> Any:
    """The architecture, as transformers knows it."""
    from transformers import AutoConfig

    s = SHAPE | c.shape
    given: dict[str, Any] = {
        "vocab_size": s["vocab"], "hidden_size": s["hidden"], "intermediate_size": s["ffn"],
        "num_hidden_layers": s["layers"], "num_attention_heads": s["heads"], "num_key_value_heads": s["kv_heads"],
        "head_dim": s["head_dim"], "max_position_embeddings": 8192, "tie_word_embeddings": c.tied,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    if c.family in ("gemma2", "gemma3_text"):
        given["query_pre_attn_scalar"] = s["head_dim"]
    if c.window is not None:
        given["sliding_window"] = c.window
    return AutoConfig.for_model(c.family, **given)


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
    words = {f"w{i}": i for i in range(8)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(folder)


def model_spec(c: Configuration, folder: Path) -> ModelSpec:
    return ModelSpec(
        path=str(folder), dtype=c.dtype, attn_implementation=c.attention, gradient_checkpointing=c.checkpointing,
        reentrant=c.reentrant, packing=c.packing, logprob_chunk=c.chunk, kind=c.kind, lora=c.lora,
        load_in_4bit=c.load_in_4bit,
    )  # type: ignore[arg-type]  # fmt: skip


def micro_batch(c: Configuration) -> MicroBatch:
    random = torch.Generator().manual_seed(3)
    lengths_B = torch.tensor(c.lengths)
    longest, vocab = max(c.lengths), (SHAPE | c.shape)["vocab"]
    tokens_BT = torch.randint(3, vocab, (len(c.lengths), longest), generator=random)
    position_T = torch.arange(longest)
    tokens_BT[position_T >= lengths_B[:, None]] = 2
    first_B = torch.tensor([length - max(1, math.ceil(c.learned * (length - 1))) for length in c.lengths])
    action_BA = (position_T[1:] >= first_B[:, None]) & (position_T[1:] < lengths_B[:, None])
    columns = {name: torch.randn(action_BA.shape, generator=random) * action_BA for name in columns_of(c)}
    return MicroBatch(tuple(range(len(c.lengths))), tokens_BT, lengths_B, action_BA, columns)


def columns_of(c: Configuration) -> tuple[str, ...]:
    return {"ppo": ("advantages", "sampler_logp", "old_logp"), "value": ("values", "returns")}.get(c.objective, ())


@dataclass(frozen=True, slots=True)
class PairObjective:
    """-log sigmoid of chosen minus rejected: the loss of preference models, and of DPO on summed log-probs."""

    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(self, output: Any, micro: MicroBatch, denominators: Denominators) -> tuple[Tensor, dict[str, Any]]:
        chosen_P, rejected_P = output[0].sum(1).chunk(2)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen_P - rejected_P)).sum() / denominators.sequences, {}


def objective_of(c: Configuration) -> Any:
    from openrlhf_ext.trainers.objectives import PolicyObjective, SftObjective, ValueObjective

    if c.objective == "ppo":
        return PolicyObjective(entropy_coef=0.01 if c.entropy else None, temperature=c.temperature)
    return {"sft": SftObjective(), "value": ValueObjective(), "pairs": PairObjective()}[c.objective]


def denominators_of(micro: MicroBatch) -> Denominators:
    return Denominators(float(micro.action_BA.sum()), float(len(micro.rows)))


def build_engine(c: Configuration, folder: Path, device: Any) -> Any:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine
    from openrlhf_ext.engine.spec import EngineSpec

    spec = EngineSpec(
        zero_stage=c.zero_stage, dtype=c.dtype, grad_accum_dtype=c.grad_accum_dtype, trainable=c.trains, total_steps=8
    )  # type: ignore[arg-type]
    return DeepSpeedEngine(model_spec(c, folder), spec, device)


def play(c: Configuration, engine: Any) -> None:
    """One optimizer step of the configuration, or one pass of a frozen model."""
    micro = micro_batch(c)
    if not c.trains:
        engine.forward(micro, c.temperature)
        return
    objective = objective_of(c)
    for _ in range(c.micro_batches):
        engine.forward_backward(micro, objective, denominators_of(micro))
    engine.step()
