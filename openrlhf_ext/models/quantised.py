"""Frozen weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

bitsandbytes is imported where it is needed only: an installation without it runs everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation; weights are turned into `dtype` whenever they are computed with."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_differentiable(model: PreTrainedModel) -> None:
    """Let the quantised layers be trained through after they were evaluated.

    On a CPU with AVX512-BF16 their first forward in eval mode repacks the weights for inference, for good, and
    every later gradient that passes through them is wrong without a word (bitsandbytes 0.50).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def whole(parameter: nn.Parameter) -> Tensor:
    """The weight as it is computed with: the parameter itself, or a new tensor of what its 4 bits mean."""
    state = _state(parameter)
    if state is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, state)


def whole_bytes(parameter: nn.Parameter) -> int:
    """Bytes of `whole`, also of a parameter that is sharded now."""
    state = _state(parameter)
    if state is not None:
        return state.shape.numel() * state.dtype.itemsize
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()


def scales(parameter: nn.Parameter) -> list[Tensor]:
    """The tensors that belong to a quantised weight and grow with it, one scale for each of its blocks."""
    state = _state(parameter)
    return [] if state is None else [state.absmax, state.state2.absmax]


def _state(parameter: nn.Parameter) -> Any:
    return getattr(parameter, "quant_state", None)
