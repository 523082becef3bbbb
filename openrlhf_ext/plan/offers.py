"""What a change offers: a flag's other values, and what they cost in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.plan.speed import HOST_LINK
from openrlhf_ext.plan.types import Setup

COPIES = 0.6
"""Of the link to the host and of its memory, what copies and the optimizer's step there reach."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One or several flags' values at a time, from the mildest change to the strongest.

    `costs` says in words what values cost. `same_result`: the same is trained, but for rounding.
    """

    levels: tuple[dict[str, Any], ...]
    costs: Callable[[dict[str, Any]], str]
    same_result: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self.levels[0])


Move = Callable[[Setup], Offer | None]


def offer(
    path: str, values: Iterable[Any], costs: Callable[[dict[str, Any]], str], *, same_result: bool = True
) -> Offer | None:
    levels = tuple({path: value} for value in values)
    return Offer(levels, costs, same_result) if levels else None


def round_trip(size: int) -> str:
    return in_seconds(2 * size / (HOST_LINK * COPIES))


def in_seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def divisors_below(number: int) -> list[int]:
    """From the largest: the batch stays a multiple of each."""
    return [divisor for divisor in range(number - 1, 0, -1) if number % divisor == 0]


def halves_of(number: int, least: int) -> list[int]:
    """From the largest, down to `least`."""
    halves = []
    while number // 2 >= least:
        number //= 2
        halves.append(number)
    return halves
