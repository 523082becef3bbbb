"""Linear layers whose frozen weights have 8 bits: those of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339).

bitsandbytes stores them, this module computes with them: on every device, in training and in evaluation, a weight is
turned into the type of its input and multiplied with that. bitsandbytes 0.50's own product (threshold 0 or 6) is not
used, for it

- rounds what goes into a layer to 8 bits too, on a CPU in evaluation alone: log-probs that were taken before
  training differ from those in training (by 0.5 to 3 % of a layer's output), and from those of the exported model;
- keeps every layer's input for a backward pass that does not need it, on the autograd context itself, where gradient
  checkpointing cannot let go of it.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear8bit(Linear8bitLt):
    """y = x W^T + b with W (out, in) in 8 bits, and a float32 scale for each of its rows beside it."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.weight, self.bias)
        return y


def compute_whole(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn bitsandbytes' 8-bit layers into `Linear8bit`; `dtype` is that of the model."""
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.__class__ = Linear8bit
            weight: Any = module.weight
            weight.CB = None  # a second name of the same bytes, which a sleep would not move
            weight.whole_dtype = dtype


def dequantised(weight: Any, dtype: torch.dtype) -> Tensor:
    """(out, in): what the 8 bits mean, 127 of them being the largest weight of the row."""
    return weight.data.to(dtype).mul_((weight.SCB / 127.0).unsqueeze(1))


class _Product(torch.autograd.Function):
    """x W^T + b for a frozen W, which is whole only while it is multiplied with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, dequantised(weight, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        of_x, _, of_bias = ctx.needs_input_grad
        return (
            grad @ dequantised(ctx.weight, grad.dtype) if of_x else None,
            None,
            grad.flatten(0, -2).sum(0) if of_bias else None,
        )
