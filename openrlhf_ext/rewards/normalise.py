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
    """Rewards of a group after `(reward - mean) * factor`, and the factor of each."""

    rewards: list[float]
    factors: list[float]


def normalised(
    groups: Sequence[Sequence[float]], how: Normalisation, roles: Sequence[Sequence[str]] | None = None
) -> list[Scaled]:
    """The rewards of each group, `(reward - mean) / deviation` over all of them (batch) or its siblings (group).

    The deviation is the population's. Where all rewards are equal there is nothing to tell apart: 0 for each.
    In a game `roles` say for each reward who earned it, and it is compared with those of the same role.
    """
    if how == "none":
        return [Scaled(list(group), [1.0] * len(group)) for group in groups]
    roles = roles or [[""] * len(group) for group in groups]
    pools: dict[tuple[int, str], list[float]] = {}
    named = [
        [(place if how == "group" else 0, role) for role in own] for place, own in enumerate(roles)
    ]  # the pool that each reward belongs to
    for group, names in zip(groups, named, strict=True):
        for reward, name in zip(group, names, strict=True):
            pools.setdefault(name, []).append(reward)
    moments = {name: _moments(pool) for name, pool in pools.items()}
    return [_scaled(group, [moments[name] for name in names]) for group, names in zip(groups, named, strict=True)]


def _moments(rewards: Sequence[float]) -> tuple[float, float]:
    """The mean, and one by the deviation: 0 where there is none."""
    if not rewards:
        return 0.0, 0.0
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return mean, 0.0 if deviation <= LEAST_SPREAD * max(map(abs, rewards)) else 1 / deviation


def _scaled(rewards: Sequence[float], moments: Sequence[tuple[float, float]]) -> Scaled:
    scaled = [(reward - mean) * factor for reward, (mean, factor) in zip(rewards, moments, strict=True)]
    return Scaled(scaled, [factor for _, factor in moments])
