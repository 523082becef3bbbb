"""Frozen weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) or in 8, by bitsandbytes.

bitsandbytes is imported where it is needed only: an installation without it runs everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from openrlhf_ext.models.spec import ModelSpec, torch_dtype


def quantisation(spec: ModelSpec) -> BitsAndBytesConfig | None:
    """What transformers is told to load the model's linear weights as; None for whole ones."""
    if spec.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)  # of its products, which are not used
    return nf4(torch_dtype(spec.dtype)) if spec.load_in_4bit else None


def prepare(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Let a model that was loaded as `quantisation` says be trained through."""
    if spec.load_in_4bit:
        keep_differentiable(model)
    elif spec.load_in_8bit:
        from openrlhf_ext.models.eight_bits import compute_whole

        compute_whole(model, torch_dtype(spec.dtype))


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation; weights are turned into `dtype` whenever they are computed with."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_differentiable(model: PreTrainedModel) -> None:
    """Let the 4-bit layers be trained through after they were evaluated.

    On a CPU with AVX512-BF16 their first forward in eval mode repacks the weights for inference, for good, and
    every later gradient that passes through them is wrong without a word (bitsandbytes 0.50).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def whole(parameter: nn.Parameter) -> Tensor:
    """The weight as it is computed with: the parameter itself, or a new tensor of what its 4 or 8 bits mean."""
    if _has_8_bits(parameter):
        from openrlhf_ext.models.eight_bits import dequantised

        return dequantised(parameter, _whole_dtype(parameter))
    state = _state(parameter)
    if state is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, state)


def whole_bytes(parameter: nn.Parameter) -> int:
    """Bytes of `whole`, also of a parameter that is sharded now."""
    if _has_8_bits(parameter):
        return parameter.numel() * _whole_dtype(parameter).itemsize
    state = _state(parameter)
    if state is not None:
        return state.shape.numel() * state.dtype.itemsize
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()


def scales(parameter: Any) -> list[Tensor]:
    """The tensors that belong to a quantised weight and grow with it, one scale for each of its blocks or rows."""
    if _has_8_bits(parameter):
        return [parameter.SCB]
    state = _state(parameter)
    return [] if state is None else [state.absmax, state.state2.absmax]


def _has_8_bits(parameter: Any) -> bool:
    return getattr(parameter, "SCB", None) is not None


def _whole_dtype(parameter: Any) -> torch.dtype:
    dtype: torch.dtype = parameter.whole_dtype
    return dtype


def _state(parameter: nn.Parameter) -> Any:
    return getattr(parameter, "quant_state", None)
