"""Weights that no file gave: drawn alike on every rank, however they are sharded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

Writable = Callable[[list[nn.Parameter]], AbstractContextManager[object]]
"""While it lasts the parameters are whole; what rank 0 writes into them is then every rank's."""


def draw_normal(parameter: nn.Parameter, std: float, seed: int, writable: Writable) -> None:
    """Draw from N(0, std^2) by a generator of our own: the same numbers on any device and in any precision."""
    with writable([parameter]), torch.no_grad():
        drawn = torch.normal(0.0, std, parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.copy_(drawn)
