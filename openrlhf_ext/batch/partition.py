"""Which row goes into which micro-batch of which rank: integers only, no tensors.

The plan is deterministic, every row is in it exactly once, and every rank has the same number of
micro-batches (collectives of a sharded model would otherwise wait for ever). Equal counts are
reached by cutting micro-batches smaller; an empty micro-batch `()`, which the caller fills with a
dummy, appears only where there are fewer rows than ranks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

Rows = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How a batch is cut. Exactly one of `rows` and `max_tokens` is given.

    `rows` is the largest number of rows of a micro-batch. `max_tokens` is its token budget: rows x
    longest row when padded, the sum of the lengths when `packed`. A row above the budget is a
    micro-batch of its own. So many consecutive rows as `unit` says are never parted (2: the answers
    of a preference pair), and `rows` then counts units.
    """

    ranks: int = 1
    rows: int | None = None
    max_tokens: int | None = None
    packed: bool = False
    unit: int = 1

    def __post_init__(self) -> None:
        assert self.ranks > 0 and self.unit > 0, "at least one rank, units of at least one row"
        assert (self.rows is None) != (self.max_tokens is None), "either rows or a token budget"
        assert (self.rows or self.max_tokens or 0) > 0, "a micro-batch holds something"

    def cost(self, lengths: Sequence[int], rows: Rows) -> int:
        """Tokens that a micro-batch of these rows takes, padding included unless packed."""
        if not rows:
            return 0
        if self.packed:
            return sum(lengths[r] for r in rows)
        return len(rows) * max(lengths[r] for r in rows)


def micro_batches(lengths: Sequence[int], settings: SplitSettings) -> list[list[Rows]]:
    """For each rank its micro-batches, as tuples of row indices into `lengths`.

    Ranks are balanced by cost, and the k-th micro-batches of all ranks cost about the same,
    because a sharded model runs them in lockstep.
    """
    assert len(lengths) > 0, "nothing to split"
    if settings.unit > 1:
        return _in_units(lengths, settings)
    longest_first = sorted(range(len(lengths)), key=lambda r: (-lengths[r], r))
    if settings.rows is not None:
        parts = _by_count(longest_first, settings.rows, settings.ranks)
    else:
        assert settings.max_tokens is not None
        by_budget = _packed if settings.packed else _padded
        parts = by_budget(longest_first, lengths, settings.max_tokens, settings.ranks)
    return _deal(parts, lambda rows: settings.cost(lengths, rows), settings.ranks)


def _in_units(lengths: Sequence[int], settings: SplitSettings) -> list[list[Rows]]:
    """A unit is as long as its longest row, beside which the others are padded, or as all of them packed."""
    unit = settings.unit
    assert len(lengths) % unit == 0, "whole units"
    starts = range(0, len(lengths), unit)
    length_of = sum if settings.packed else max
    budget = settings.max_tokens
    if budget is not None and not settings.packed:
        budget = max(budget // unit, 1)
    plan = micro_batches(
        [length_of(lengths[start : start + unit]) for start in starts], replace(settings, unit=1, max_tokens=budget)
    )
    return [
        [tuple(row for at in rows for row in range(starts[at], starts[at] + unit)) for rows in rank] for rank in plan
    ]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _by_count(longest_first: list[int], rows: int, ranks: int) -> list[Rows]:
    """Neighbours in length together, in parts whose sizes differ by at most one."""
    n = len(longest_first)
    count = min(_round_up(-(-n // rows), ranks), n)
    edges = [n * i // count for i in range(count + 1)]
    return [tuple(longest_first[a:b]) for a, b in pairwise(edges)]


def _padded(longest_first: list[int], lengths: Sequence[int], budget: int, ranks: int) -> list[Rows]:
    """Neighbours in length together; the fewest parts within the budget, then the smallest maximum."""

    def fill(cap: int) -> list[Rows]:
        parts: list[Rows] = []
        start = 0
        while start < len(longest_first):
            size = max(cap // lengths[longest_first[start]], 1)  # the first row of a part is its longest
            parts.append(tuple(longest_first[start : start + size]))
            start += size
        return parts

    count = min(_round_up(len(fill(budget)), ranks), len(longest_first))
    # fill(cap) has fewer parts the larger the cap: the smallest cap that still gives `count` parts
    # spreads the work instead of filling all but the last part to the brim.
    cap = bisect_left(range(budget), True, key=lambda c: len(fill(c)) <= count)
    parts = fill(cap)
    while len(parts) < count:
        parts.sort(key=lambda rows: (-len(rows) * lengths[rows[0]] if len(rows) > 1 else 0, rows[0]))
        widest = parts.pop(0)
        half = len(widest) // 2
        parts += [widest[:half], widest[half:]]
    return parts


def _packed(longest_first: list[int], lengths: Sequence[int], budget: int, ranks: int) -> list[Rows]:
    """Longest-processing-time-first (Graham, 1969) into about the fewest bins that hold."""
    alone: list[Rows] = [(r,) for r in longest_first if lengths[r] >= budget]
    rest = longest_first[len(alone) :]

    def fill(count: int) -> list[Rows] | None:
        bins: list[list[int]] = [[] for _ in range(min(count, len(longest_first)) - len(alone))]
        heap = [(0, i) for i in range(len(bins))]
        for r in rest:
            load, i = heap[0]
            if load + lengths[r] > budget:
                return None
            bins[i].append(r)
            heapq.heapreplace(heap, (load + lengths[r], i))
        return alone + [tuple(b) for b in bins]

    least = len(alone) + -(-sum(lengths[r] for r in rest) // budget)
    counts = range(_round_up(least, ranks), _round_up(len(longest_first), ranks), ranks)
    at = bisect_left(counts, True, key=lambda count: fill(count) is not None)
    # A bin for every row holds for certain.
    parts = fill(counts[at] if at < len(counts) else len(longest_first))
    assert parts is not None
    return parts


def _deal(parts: list[Rows], cost: Callable[[Rows], int], ranks: int) -> list[list[Rows]]:
    """Rounds of one part per rank, costliest first; within a round the costliest to the least loaded rank."""
    dearest_first = sorted(parts, key=lambda rows: (-cost(rows), rows))
    dearest_first += [()] * (_round_up(len(parts), ranks) - len(parts))
    plan: list[list[Rows]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for start in range(0, len(dearest_first), ranks):
        least_loaded = sorted(range(ranks), key=lambda rank: (load[rank], rank))
        for rank, rows in zip(least_loaded, dearest_first[start : start + ranks], strict=True):
            plan[rank].append(rows)
            load[rank] += cost(rows)
    return plan
