"""Several verdicts on one response become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from openrlhf_ext.rewards.judge.rubric import TIE, Criterion, Value


def vote(criteria: Sequence[Criterion], verdicts: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """The median of each numeric criterion, the most frequent value of each other.

    Where two are equally good a candidate, the one that is worse for the response wins: the same verdicts in any
    order give the same result, and no answer gains by the judge's doubt.
    """
    voted: dict[str, Value] = {}
    for criterion in criteria:
        values = sorted((verdict[criterion.name] for verdict in verdicts), key=lambda v: (criterion.goodness(v), v))
        if criterion.scale.kind in ("integer", "number"):
            voted[criterion.name] = values[(len(values) - 1) // 2]
        else:
            counts = Counter(values)
            voted[criterion.name] = max(values, key=lambda v: counts[v])  # the first, so the worst, of equals
    return voted


def vote_on_pair(votes: Sequence[str]) -> str:
    """The most frequent of A, B and tie; a tie where two are equally frequent."""
    counts = Counter(votes).most_common()
    return TIE if len(counts) > 1 and counts[0][1] == counts[1][1] else counts[0][0]
