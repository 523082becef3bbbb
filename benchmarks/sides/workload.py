"""What every side is given: one model, one set of prompts, one set of numbers."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT_WORDS = 16
LENGTH_OF_NEVER = 1e13
"""A mean answer so long that no EOS is ever sampled: every answer takes all the tokens it may."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One RL step: `prompts` x `samples` answers of up to `max_new_tokens`, one optimizer step over all of them."""

    name: str
    folder: Path
    device: str  # cpu or cuda
    threads: int
    prompts: int
    samples: int
    max_new_tokens: int
    micro_batch: int
    kl_coef: float
    lr: float
    seed: int
    zero_stage: int
    memory_share: float  # of a GPU, for each side's engine

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def prompt_file(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    @property
    def max_len(self) -> int:
        return 128 + self.max_new_tokens

    @property
    def dtype(self) -> str:
        """Full precision on a CPU, on a GPU what is trained in there."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def texts(self) -> list[str]:
        lines = self.prompt_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prompt"] for line in lines]


def write_workload(workload: Workload, shape: str, mean_length: float) -> int:
    """Write the model, the prompts and the reward file of this workload; returns the number of parameters."""
    workload.folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(workload.seed)
    words = _words(draw)
    prompts = [{"prompt": " ".join(draw.choices(words, k=PROMPT_WORDS))} for _ in range(workload.prompts)]
    workload.prompt_file.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return _write_model(workload.model, shape, [" ".join(words)], workload.seed, mean_length)


def _words(draw: random.Random, count: int = 6000) -> list[str]:
    """Made-up words, enough for a tokenizer of some thousand merges."""
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    return ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(count)]


def _write_model(folder: Path, shape: str, corpus: list[str], seed: int, mean_length: float) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

    shapes = {
        "10m": TinyShape(hidden=256, layers=9, heads=8, kv_heads=4, intermediate=1024, vocab=4096, head_dim=32),
        # Qwen3-0.6B's, whose vocabulary is filled up below: no tokenizer has to be trained to that size.
        "0.6b": TinyShape(hidden=1024, layers=28, heads=16, kv_heads=8, intermediate=3072, vocab=4096, head_dim=128),
    }
    build_tiny_model(folder, shapes[shape], corpus=corpus, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if shape == "0.6b":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(151936, mean_resizing=False)
    _end_with_probability(model, 1.0 / mean_length, seed)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _end_with_probability(model: PreTrainedModel, probability: float, seed: int) -> None:
    """Make EOS come with about this probability after any token, so that lengths are geometric.

    The heads of these models have no bias. One channel of every token's embedding is so large that the final norm
    leaves it about constant; the EOS row of the head (the same matrix) reads that channel alone.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    eos = model.config.eos_token_id
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[:, 0] = 4 * head.std() * math.sqrt(head.shape[1])
        tokens_BT = torch.randint(300, 4000, (8, 64), generator=generator)
        hidden_BTH = model.base_model(tokens_BT).last_hidden_state
        others_BT = (hidden_BTH @ head.T).index_fill(-1, torch.tensor([eos]), -math.inf).logsumexp(-1)
        wanted = others_BT.mean() + math.log(probability / (1.0 - probability))
        head[eos] = 0.0
        head[eos, 0] = wanted / hidden_BTH[..., 0].mean()
