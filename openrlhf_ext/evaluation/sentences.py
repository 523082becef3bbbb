"""What figures say, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from openrlhf_ext.evaluation.agreement import LEVEL
from openrlhf_ext.evaluation.figures import rate_of

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


def outcome_sentence(figures: Mapping[str, Any], outcome: str = "right") -> str:
    """`rate_sentence` of an outcome in what `figures_of` found."""
    rated = figures["rated"]
    hits, estimate = figures["outcomes"][outcome], rate_of(figures, outcome)
    return rate_sentence(hits, rated["answers"], estimate, questions=rated["questions"])


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


def difference_sentence(
    name: str, cell: Mapping[str, Any], *, better: Literal["high", "low"] = "high", of_rates: bool = True
) -> str:
    """What a comparison's cell says: how far B is from A, whether that means anything at this n, and how many
    questions would be needed to tell it. `name` is what the rate, or the mean, is called.
    """
    n, difference, unit = cell["n"], cell["difference"]["value"], " points" if of_rates else ""
    said = percent if of_rates else _number
    size = points if of_rates else _size
    sides = " and ".join(f"{side.upper()} {said(cell[side]['value'], n)}" for side in ("a", "b"))
    head = f"{name} on {_questions(n)} that both have: {sides}; "
    low, high = cell["difference"]["low"], cell["difference"]["high"]
    if cell["p"] is None or low is None or high is None:
        return f"{head}of one question nothing can be said."
    interval = f"{100 * LEVEL:g} % interval {size(low, n, sign=True)} to {size(high, n, sign=True)}{unit}"
    telling = f"{_questions(n)} can tell no difference at all."
    if cell["detectable"] is not None:
        telling = f"With {_questions(n)} one of {size(cell['detectable'], n)}{unit} or more is told."
    if not difference:
        return f"{head}no difference ({interval}). {telling}"
    apart = f"{size(abs(difference), n)}{unit} {'more' if difference > 0 else 'less'} for B"
    test = f"{cell['test']}, p {probability(cell.get('p_holm', cell['p']))}"
    if cell["told"]:
        good = (difference > 0) == (better == "high")
        return f"{head}{apart} ({interval}; {test}): more than chance, B is {'better' if good else 'worse'}."
    needed = f"about {cell['needed']:,} questions would be needed to tell such a difference (power 80 %)"
    return f"{head}{apart} ({interval}; {test}): it may be chance; {needed}. {telling}"


def points(part: float, n: float, *, sign: bool = False) -> str:
    """Of a hundred; with decimals where there are many questions."""
    return f"{100 * part:{'+' if sign else ''}.{0 if n < FEW else 1}f}"


def probability(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _number(value: float | None, n: float) -> str:
    return "-" if value is None else f"{value:.4g}"


def _size(value: float, n: float, *, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.3g}"


def _questions(n: int) -> str:
    return f"{n:,} question{'s' * (n != 1)}"
