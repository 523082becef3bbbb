"""What figures say, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
