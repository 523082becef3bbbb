"""The critic's loss, per token. Its sum over a batch is taken in `ops.aggregate`."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values_BA: Tensor, old_values_BA: Tensor, returns_BA: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error, and which values clipping kept from moving further (bool; no gradient there).

    `clip` bounds how far a value may move from the old one, pessimistically: the larger of the two
    errors counts, as in the code of PPO (Schulman et al. 2017, arXiv:1707.06347). None: no bound.
    """
    error_BA = (values_BA - returns_BA).square()
    if clip is None:
        return error_BA / 2, torch.zeros_like(error_BA, dtype=torch.bool)
    # Between bounds, not old + clamped difference: a value within them must stay what it is to the last bit,
    # or rounding would count it as clipped.
    near_BA = values_BA.clamp(old_values_BA - clip, old_values_BA + clip)
    bound_BA = (near_BA - returns_BA).square()
    return torch.maximum(error_BA, bound_BA) / 2, bound_BA > error_BA
