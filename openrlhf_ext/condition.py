"""A condition on a held-out figure, as a user writes it: `eval_accuracy>=0.9`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

_FORM = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|>|<)\s*([^\s<>=!]+)\s*")
_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
EVAL = "eval"
"""What the names of held-out figures begin with."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`metric` is the name of a figure as `find_metric` understands it; `sign` one of >=, >, <=, <."""

    metric: str
    sign: str
    target: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.target:g}"

    @property
    def wants_more(self) -> bool:
        return self.sign.startswith(">")

    def holds(self, value: float) -> bool:
        """A NaN reaches no target."""
        return _HOLDS[self.sign](value, self.target)


@dataclass(frozen=True, slots=True)
class Reached:
    """That a condition holds: the figure's whole name, its value, and the step that it was measured after."""

    metric: str
    value: float
    step: int


def parse_condition(text: str) -> Condition:
    """Raises ValueError, with what is wrong, for a text that is no condition."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError('it is no condition; write a figure, >=, >, <= or <, and a number: "eval_accuracy>=0.9"')
    metric, sign, number = found.groups()
    try:
        target = float(number)
    except ValueError:
        raise ValueError(f"{number} is no number") from None
    if not abs(target) < float("inf"):
        raise ValueError(f"{number} is never reached; give a finite number")
    return Condition(metric, sign, target)


def find_metric(name: str, metrics: Collection[str]) -> str | None:
    """The one of these metrics that is meant by `name`: its whole name, or its last parts, with `/` or `_` between
    them and with `eval` before them or not (`eval_accuracy` is `eval/accuracy`, or `eval/SOURCE/accuracy`).

    Of several the one with the fewest parts, then the one over all sources, then the first in alphabetical order.
    """
    wanted = plain(name)
    meant = [metric for metric in metrics if wanted in _names(metric)]
    return min(meant, key=lambda metric: (metric.count("/"), "all" not in metric.split("/"), metric), default=None)


def plain(name: str) -> str:
    return name.replace("/", "_")


def _names(metric: str) -> set[str]:
    """All that a metric may be called."""
    parts = metric.split("/")
    endings = {plain("/".join(parts[start:])) for start in range(len(parts))}
    return endings | {f"{EVAL}_{ending}" for ending in endings}
