"""Rewards of one source on a scale of their own: mean 0 and deviation 1 over a batch or over a group.

Nothing is remembered from one batch to the next, so a resumed run gives the same rewards as one that went on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_ext.rewards.sources import Normalisation

LEAST_SPREAD = 1e-8
"""A deviation below this part of the largest reward is rounding."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Rewards of a group after `(reward - mean) * factor`, and that factor."""

    rewards: list[float]
    factor: float


def normalised(groups: Sequence[Sequence[float]], how: Normalisation) -> list[Scaled]:
    """The rewards of each group, `(reward - mean) / deviation` over all of them (batch) or its siblings (group).

    The deviation is the population's. Where all rewards are equal there is nothing to tell apart: 0 for each.
    """
    if how == "none":
        return [Scaled(list(group), 1.0) for group in groups]
    if how == "group":
        return [_scaled(group, *_moments(group)) for group in groups]
    moments = _moments([reward for group in groups for reward in group])
    return [_scaled(group, *moments) for group in groups]


def _moments(rewards: Sequence[float]) -> tuple[float, float]:
    """The mean, and one by the deviation: 0 where there is none."""
    if not rewards:
        return 0.0, 0.0
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return mean, 0.0 if deviation <= LEAST_SPREAD * max(map(abs, rewards)) else 1 / deviation


def _scaled(rewards: Sequence[float], mean: float, factor: float) -> Scaled:
    return Scaled([(reward - mean) * factor for reward in rewards], factor)
