"""The part of flash-attn that openrlhf imports at its top, in plain torch, so that it imports on a CPU.

`flash_attn.bert_padding` (four functions) and `flash_attn.utils.distributed.all_gather`. The
padding functions work; nothing in the parity tests gathers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    return x[indices]


def unpad_input(hidden_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The real positions one after the other, where they stood, and the borders of the rows."""
    lengths_B = mask_BT.sum(-1, dtype=torch.int32)
    indices_N = mask_BT.flatten().nonzero().flatten()
    borders = F.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden_BT.flatten(0, 1)[indices_N], indices_N, borders, int(lengths_B.max()), lengths_B


def pad_input(hidden_N: Tensor, indices_N: Tensor, batch: int, seqlen: int) -> Tensor:
    padded = hidden_N.new_zeros(batch * seqlen, *hidden_N.shape[1:])
    return padded.index_copy(0, indices_N, hidden_N).unflatten(0, (batch, seqlen))


def all_gather(x: Tensor, process_group: object) -> Tensor:
    raise AssertionError("no parity test runs on several processes")


def _module(name: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None)
    module.__dict__.update(content)
    return module


@contextmanager
def flash_attn_stand_in() -> Iterator[None]:
    """In `sys.modules` for the time of the import only: transformers asks there what it may use."""
    from einops import rearrange

    padding = {f.__name__: f for f in (index_first_axis, unpad_input, pad_input, rearrange)}
    modules = [
        _module("flash_attn", __version__="0", __path__=[]),
        _module("flash_attn.bert_padding", **padding),
        _module("flash_attn.utils", __path__=[]),
        _module("flash_attn.utils.distributed", all_gather=all_gather),
    ]
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for module in modules:
            del sys.modules[module.__name__]
