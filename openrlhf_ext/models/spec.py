"""What a model is, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Dtype = Literal["fp32", "bf16", "fp16"]

_TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    return _TORCH_DTYPES[dtype]


Kind = Literal["causal_lm", "value", "reward"]


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A, of which A and B are trained."""

    rank: int
    alpha: int = 16
    target_modules: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        assert self.rank > 0, "adapters have a rank"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model and how it is run.

    `kind` says what it answers with: log-probs of tokens (`causal_lm`), a value at every token (`value`, the
    critic) or a score at the last token (`reward`; of `head_dim` numbers). A `reward` model that is to be trained
    may have a `new_head`; otherwise its head comes from its files. Of a model that also sees, which must not
    be `served`, the text tower alone is loaded.
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
    kind: Kind = "causal_lm"
    value_head: str = "score"  # name of the head of a value or reward model
    head_dim: int = 1
    new_head: bool = False
    normalize: bool = False  # its numbers, by the mean and standard deviation that the checkpoint knows
    lora: LoraSpec | None = None  # None: all weights are trained
    adapters: str | None = None  # a folder of adapters that training goes on from; `lora` describes them
    served: bool = False  # an inference engine loads the same files, and all that is in them
    load_in_4bit: bool = False  # NF4 base weights (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)
    load_in_8bit: bool = False  # base weights of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339)

    def __post_init__(self) -> None:
        assert self.logprob_chunk > 0, "a chunk holds at least one position"
        assert self.adapters is None or self.lora is not None, "adapters have a rank"
        assert not (self.load_in_4bit and self.load_in_8bit), "a weight has 4 bits or 8"

    @property
    def files(self) -> list[str]:
        """The folders, or the hub's name, that are read to load it."""
        return [self.path, *([self.adapters] if self.adapters is not None else [])]

    @property
    def quantised(self) -> bool:
        return self.load_in_4bit or self.load_in_8bit
