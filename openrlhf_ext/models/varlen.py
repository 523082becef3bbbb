"""Attention of packed rows by torch's own variable-length kernel, for a GPU without flash-attn.

Not run without a GPU: only what stands around the kernel is tested on a CPU. S tokens of all rows behind
each other, H query heads, G key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

TORCH_VARLEN = "torch_varlen"


def varlen_attention(
    module: nn.Module,
    query_1HSD: Tensor,
    key_1GSD: Tensor,
    value_1GSD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row; returns (1, S, H, D), as transformers wants it.

    `cu_seq_lens_q` (rows + 1, int32) says where rows begin and end.
    """
    assert attention_mask is None, "rows are told apart by their bounds"
    query_SHD, key_SGD, value_SGD = (states[0].transpose(0, 1) for states in (query_1HSD, key_1GSD, value_1GSD))
    output_SHD: Any = varlen_attn(
        query_SHD,
        key_SGD,
        value_SGD,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query_SHD.shape[1] != key_SGD.shape[1],
    )
    return output_SHD[None], None


def row_bounds(lengths_B: Tensor) -> dict[str, Any]:
    """What `varlen_attention` is told of packed rows, by the names that transformers' models hand through."""
    bounds = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths_B.max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


AttentionInterface.register(TORCH_VARLEN, varlen_attention)
