"""Responses of one prompt against each other: which pairs are asked, and what becomes of their outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.rubric import TIE, A, B, Rubric

POINTS = {A: (1.0, 0.0), B: (0.0, 1.0), TIE: (0.5, 0.5)}
TURNED = {A: B, B: A, TIE: TIE}


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one response among its siblings: its share of points by criterion, and the pairs it was in."""

    shares: Mapping[str, float]
    pairs: Sequence[Mapping[str, Any]] = ()
    cut: int = 0


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """By criterion, the better response of a pair: "A" the first of it, "B" the second, "tie".

    `straight` is what was said when the first was shown first, `turned` when it was shown second, both in terms of
    the pair; `winners` is that on which they agree, and a tie where they do not.
    """

    winners: Mapping[str, str]
    straight: Mapping[str, str]
    turned: Mapping[str, str]
    samples: Sequence[Mapping[str, Any]] = ()
    cut: int = 0  # characters of the data that the judge was not shown


def choose_pairs(responses: Sequence[str], most: int | None) -> list[tuple[int, int, bool]]:
    """Pairs (i, j) of a group, and whether their responses are the same text, which is a tie without a question.

    At most `most` of them, but each response is in one at least: neighbours in a ring first, then those two apart,
    and so on, so that each is in about as many pairs as any other.
    """
    n = len(responses)
    starts = [*range(0, n, 2), *range(1, n, 2)]
    ring = [tuple(sorted((i, (i + apart) % n))) for apart in range(1, n // 2 + 1) for i in starts]
    pairs = list(dict.fromkeys(ring))[: None if most is None else max(most, (n + 1) // 2)]
    return [(i, j, responses[i] == responses[j]) for i, j in pairs]


def in_both_orders(
    rubric: Rubric,
    straight: Mapping[str, str] | NoVerdict,
    turned: Mapping[str, str] | NoVerdict,
    samples: Sequence[Sequence[Any]],
    cut: int,
) -> PairVerdict | NoVerdict:
    """What two orders of a pair agree on. `turned` is in the terms of its own order."""
    if isinstance(straight, NoVerdict):
        return straight
    if isinstance(turned, NoVerdict):
        return turned
    back = {name: TURNED[winner] for name, winner in turned.items()}
    winners = {c.name: straight[c.name] if straight[c.name] == back[c.name] else TIE for c in rubric.criteria}
    kept = [
        {"order": order, **sample}
        for order, each in zip(("AB", "BA"), samples, strict=True)
        for sample in each
        if not isinstance(sample, NoVerdict)
    ]
    return PairVerdict(winners, straight, back, kept, cut)


def group_scores(
    rubric: Rubric,
    n: int,
    outcomes: Sequence[tuple[int, int, PairVerdict | NoVerdict | None]],
    counts: Counter[str],
) -> list[Standing | NoVerdict]:
    """Where each of n responses stands, or why there is nothing to say.

    A pair without a verdict counts for nobody; a response that has no other pair has no verdict. None as an
    outcome is a pair of equal texts, a tie. A response that is alone in its group has 0.5: it is tied with nobody.
    """
    points: list[dict[str, list[float]]] = [{c.name: [] for c in rubric.criteria} for _ in range(n)]
    seen: list[list[dict[str, Any]]] = [[] for _ in range(n)]
    lost: dict[int, NoVerdict] = {}
    for i, j, outcome in outcomes:
        counts["pairs"] += 1
        if isinstance(outcome, NoVerdict):
            counts["pairs_lost"] += 1
            lost.setdefault(i, outcome)
            lost.setdefault(j, outcome)
            continue
        for criterion in rubric.criteria:
            winner = outcome.winners[criterion.name] if outcome is not None else TIE
            if outcome is not None and outcome.straight[criterion.name] != outcome.turned[criterion.name]:
                counts["disagreements"] += 1
            first, second = POINTS[winner]
            points[i][criterion.name].append(first)
            points[j][criterion.name].append(second)
        for me, other in ((i, j), (j, i)):
            seen[me].append({"against": other, "first": me == i, **_said(outcome)})
    if n == 1:
        counts["alone"] += 1
        return [Standing({c.name: 0.5 for c in rubric.criteria})]
    results: list[Standing | NoVerdict] = []
    for me in range(n):
        if not seen[me]:
            results.append(lost[me])
            continue
        shares = {name: sum(values) / len(values) for name, values in points[me].items()}
        cut = max(
            (outcome.cut for i, j, outcome in outcomes if me in (i, j) and isinstance(outcome, PairVerdict)), default=0
        )
        results.append(Standing(shares, seen[me], cut))
    return results


def _said(outcome: PairVerdict | None) -> dict[str, Any]:
    if outcome is None:
        return {"winners": "equal texts"}
    return {"winners": dict(outcome.winners), "said": [dict(sample) for sample in outcome.samples]}
