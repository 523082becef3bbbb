"""What figures say, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from openrlhf_ext.evaluation.agreement import LEVEL

FEW = 200
"""Below this many questions a tenth of a per cent says nothing."""


def percent(part: float | None, n: float) -> str:
    """`part` of n as a person reads it: 60 %, and 60.4 % of many."""
    if part is None or math.isnan(part):
        return "-"
    return f"{100 * part:.{0 if n < FEW else 1}f} %"


def rate_sentence(hits: int, n: int, estimate: Mapping[str, Any], *, questions: int | None = None) -> str:
    """`6 of 10: 60 %, 95 % interval 31 % to 83 %`. With several answers to a question, say of how many `questions`."""
    if not n:
        return "0 of 0: nothing can be told"
    of = questions or n
    several = "" if of == n else f" answers to {of} question{'s' * (of != 1)}"
    value, low, high = (percent(estimate[name], of) for name in ("value", "low", "high"))
    return f"{hits} of {n}{several}: {value}, {100 * LEVEL:g} % interval {low} to {high}"


def accuracy_sentence(figures: Mapping[str, Any]) -> str:
    """`rate_sentence` of what `figures_of` found."""
    rated = figures["rated"]
    return rate_sentence(
        figures["outcomes"]["right"], rated["answers"], figures["accuracy"], questions=rated["questions"]
    )


def threshold_sentence(estimate: Mapping[str, Any], threshold: float, n: int, *, at_least: bool = True) -> str:
    """Whether a rate is at least (or at most) a threshold, as far as its interval tells."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    wanted = f"{'at least' if at_least else 'at most'} {percent(threshold, n)}"
    if value is None:
        return f"whether it is {wanted} cannot be told: there is nothing to count"
    met = low >= threshold if at_least else high <= threshold
    missed = high < threshold if at_least else low > threshold
    between = f"the interval is {percent(low, n)} to {percent(high, n)}"
    if met or missed:
        return f"it is {'' if met else 'not '}{wanted}: {between}"
    side = value >= threshold if at_least else value <= threshold
    return f"{percent(value, n)} is {'' if side else 'not '}{wanted}, but {n} rows cannot tell: {between}"


def difference_sentence(name: str, cell: Mapping[str, Any], *, better: Literal["high", "low"] = "high") -> str:
    """What a comparison's cell says: how far B is from A, whether that means anything at this n, and how many
    questions would be needed to tell it. `name` is what the rate is called.
    """
    n, difference = cell["n"], cell["difference"]
    rates = " and ".join(f"{side.upper()} {percent(cell[side]['value'], n)}" for side in ("a", "b"))
    head = f"{name} on {_questions(n)} that both have: {rates}; "
    ends = [difference["low"], difference["high"]]
    if cell["p"] is None or None in ends:
        return f"{head}of one question nothing can be said."
    interval = f"95 % interval {points(ends[0], n, sign=True)} to {points(ends[1], n, sign=True)} points"
    test = f"{cell['test']}, p {probability(cell.get('p_holm', cell['p']))}"
    if not difference["value"]:
        return f"{head}no difference ({interval}). {_telling(cell)}"
    way = "more" if difference["value"] > 0 else "less"
    size = f"{points(abs(difference['value']), n)} points {way} for B"
    if cell["told"]:
        good = (difference["value"] > 0) == (better == "high")
        return f"{head}{size} ({interval}; {test}): more than chance, B is {'better' if good else 'worse'}."
    needed = f"about {cell['needed']:,} questions would be needed to tell such a difference (power 80 %)"
    return f"{head}{size} ({interval}; {test}): it may be chance; {needed}. {_telling(cell)}"


def points(part: float, n: float, *, sign: bool = False) -> str:
    """Of a hundred; with decimals where there are many questions."""
    return f"{100 * part:{'+' if sign else ''}.{0 if n < FEW else 1}f}"


def probability(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _telling(cell: Mapping[str, Any]) -> str:
    n = cell["n"]
    if cell["detectable"] is None:
        return f"{_questions(n)[0].upper()}{_questions(n)[1:]} can tell no difference at all."
    return f"With {_questions(n)} one of {points(cell['detectable'], n)} points or more is told."


def _questions(n: int) -> str:
    return f"{n:,} question{'s' * (n != 1)}"
