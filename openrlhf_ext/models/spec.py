"""What a model is, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Dtype = Literal["fp32", "bf16", "fp16"]

_TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    return _TORCH_DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A causal language model and how it is run.

    `packing` puts the rows of a micro-batch one behind the other instead of padding them;
    `logprob_chunk` is the number of positions whose logits are in memory at a time.
    """

    path: str
    dtype: Dtype = "bf16"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    reentrant: bool = False  # the older checkpointing, without support for parts of the graph that need no gradient
    packing: bool = False
    logprob_chunk: int = 1024

    def __post_init__(self) -> None:
        assert self.logprob_chunk > 0, "a chunk holds at least one position"
