"""What every command's models have in common: the ZeRO stage that runs, the attention, the largest micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from openrlhf_ext.plan.types import Dtype, Hardware, Lora, Pass

Stage = Literal[0, 1, 2, 3]


def stage_that_runs(
    zero_stage: Stage,
    *,
    trainable: bool,
    dtype: Dtype,
    grad_accum_dtype: Dtype | None,
    adam_offload: bool,
    param_offload: bool,
) -> Stage:
    """`engine.deepspeed_config.effective_stage`, which says why, for a process without torch."""
    if not trainable:
        return 3 if zero_stage == 3 or param_offload else 0
    if dtype == "bf16" and grad_accum_dtype == "fp32":
        return 3
    if dtype != "fp32" or adam_offload:
        return max(zero_stage, 1)
    return zero_stage


def training_options(ds: Any, optimizer: Any) -> dict[str, Any]:
    """The fields of a ModelRun in training that follow from the `ds` section and the one with its `adam`."""
    dtype: Dtype = ds.param_dtype
    stage = stage_that_runs(
        ds.zero_stage,
        trainable=True,
        dtype=dtype,
        grad_accum_dtype=ds.grad_accum_dtype,
        adam_offload=ds.adam_offload,
        param_offload=False,
    )
    return {
        "trainable": True,
        "dtype": dtype,
        "zero_stage": stage,
        "lora": Lora(ds.lora.rank, ds.lora.alpha, ds.lora.target_modules, ds.lora.dropout) if ds.lora.rank else None,
        "load_in_4bit": ds.load_in_4bit,
        "load_in_8bit": ds.load_in_8bit,
        "eight_bit": optimizer.adam.eight_bit,
        "adam_offload": ds.adam_offload,
        "zpg": ds.zpg,
        "overlap_comm": ds.overlap_comm and stage >= 2,
        "grad_accum_dtype": ds.grad_accum_dtype,
    }


def frozen_options(ds: Any, *, offload: bool) -> dict[str, Any]:
    """The same of a model that only answers: whole, or sharded where the trained one is."""
    return {
        "trainable": False,
        "dtype": ds.param_dtype,
        "zero_stage": 3 if ds.zero_stage == 3 or offload else 0,
        "param_offload": offload,
        "zpg": ds.zpg,
    }


def forward_options(ds: Any, section: Any, hardware: Hardware) -> dict[str, Any]:
    """How a model computes; `section` has the flags of gradient checkpointing."""
    return {
        "gpu": hardware.on_gpu,
        "gradient_checkpointing": section.gradient_checkpointing_enable,
        "reentrant": section.gradient_checkpointing_reentrant,
        "packing": ds.packing_samples,
        "attention": attention(ds.attn_implementation, hardware),
        "logprob_chunk": ds.logprob_chunk_size,
    }


def attention(wanted: str, hardware: Hardware) -> str:
    """The kernel that runs: those for packed rows need a GPU of the generation that has bf16 (Ampere or newer)."""
    special = wanted.startswith("flash_attention") or wanted == "torch_varlen"
    able = hardware.card is not None and hardware.card.bf16
    return "sdpa" if special and not able else wanted


@dataclass(frozen=True, slots=True)
class Cut:
    """How a batch of sequences becomes micro-batches: by rows, or by a budget of tokens (`batch.partition`).

    `length` tokens at most in a sequence, of which `selected` go through the head. So many sequences as `unit` says
    stay together (2: a preference pair), and `rows` counts units.
    """

    length: int
    selected: int
    rows: int | None = None
    max_tokens: int | None = None
    unit: int = 1

    def largest(
        self,
        sequences: int,
        ranks: int,
        *,
        backward: bool = False,
        entropy: bool = False,
        columns: int = 0,
        tempered: bool = False,
    ) -> Pass:
        """The largest micro-batch of a rank, when so many sequences are spread over the ranks."""
        if self.max_tokens is None:
            assert self.rows is not None, "either rows or a token budget"
            rows = _rows_of_a_part(sequences // self.unit, self.rows, ranks) * self.unit
            tokens, selected = rows * self.length, rows * self.selected
        else:
            # Shorter rows fill the budget better than the longest do: it is met whatever the lengths are, as long
            # as there are rows. One row above the budget is a micro-batch of its own.
            tokens = max(min(self.max_tokens, math.ceil(sequences / ranks) * self.length), self.length)
            rows = max(tokens // self.length, 1)
            selected = math.ceil(tokens * self.selected / self.length)
        return Pass(rows, self.length, tokens, selected, backward, entropy and backward, columns, tempered)

    def accumulates(self, sequences: int, ranks: int) -> bool:
        """Whether so many sequences of full length are more than one micro-batch of each rank."""
        return self.largest(sequences, ranks).tokens * ranks < sequences * self.length


def _rows_of_a_part(sequences: int, rows: int, ranks: int) -> int:
    """Parts are of equal size, and every rank has as many of them (`batch.partition.micro_batches`)."""
    parts = math.ceil(math.ceil(sequences / rows) / ranks) * ranks
    return math.ceil(sequences / min(parts, sequences))
