"""A rubric: what a judge looks at, on which scales, and how its criteria become one reward.

`rubric_file` reads it from YAML. The JSON schema of an answer is made from it, for decoding to enforce.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

REASONING = "reasoning"
A, B, TIE = "A", "B", "tie"
PATTERN_CHUNK = 100
Mode = Literal["pointwise", "pairwise"]
Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Scale:
    """What a criterion may be: true or false, a number from `low` to `high`, or one of named choices."""

    kind: Literal["boolean", "integer", "number", "choices"]
    low: float = 0.0
    high: float = 1.0
    choices: Mapping[str, float] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        if self.kind == "boolean":
            return {"type": "boolean"}
        if self.kind == "choices":
            return {"type": "string", "enum": list(self.choices)}
        low, high = (int(self.low), int(self.high)) if self.kind == "integer" else (self.low, self.high)
        return {"type": self.kind, "minimum": low, "maximum": high}

    def holds(self, value: Any) -> bool:
        """Whether `value` is of the scale, with its JSON type: 1 is not true, "3" is not 3, 3.0 is not an integer."""
        if self.kind == "boolean":
            return isinstance(value, bool)
        if self.kind == "choices":
            return isinstance(value, str) and value in self.choices
        types = (int,) if self.kind == "integer" else (int, float)
        return isinstance(value, types) and not isinstance(value, bool) and self.low <= value <= self.high

    def number(self, value: Value) -> float:
        """The value as a number: 1 and 0 for true and false, a choice's own value."""
        return self.choices[value] if isinstance(value, str) else float(value)

    def share(self, value: Value) -> float:
        """Where the value lies from the scale's lowest (0) to its highest (1)."""
        low, high = (min(self.choices.values()), max(self.choices.values())) if self.choices else (self.low, self.high)
        return (self.number(value) - low) / (high - low)

    def words(self) -> str:
        """What the judge is told of it."""
        if self.kind == "boolean":
            return "true or false"
        if self.kind == "choices":
            return "one of " + ", ".join(f'"{name}"' for name in self.choices)
        return f"{'an integer' if self.kind == 'integer' else 'a number'} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Criterion:
    """`better low` says that the low end of its scale (false, the lowest number or choice) is the good one."""

    name: str
    description: str
    scale: Scale
    weight: float = 1.0
    better: Literal["high", "low"] = "high"

    def goodness(self, value: Value) -> float:
        """0 for the worst value of the scale, 1 for the best."""
        share = self.scale.share(value)
        return share if self.better == "high" else 1.0 - share


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A short text of the judge's before the criteria, at most `max_chars` characters on one line."""

    description: str = "a short explanation"
    max_chars: int = 200

    def schema(self) -> dict[str, Any]:
        # Decoders write a pattern raw into the string, so it leaves out what JSON would escape. One repetition
        # above 128 fails to compile in xgrammar (https://github.com/mlc-ai/xgrammar/pull/864): hence the chunks.
        whole, rest = divmod(self.max_chars, PATTERN_CHUNK)
        counts = [PATTERN_CHUNK] * whole + [rest] * bool(rest)
        repeated = "".join(rf'[^"\\\x00-\x1f\x7f]{{0,{count}}}' for count in counts)
        return {"type": "string", "pattern": f"^{repeated}$"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Characters of a text that the judge is shown at the most; of a longer one its middle is left out."""

    prompt: int = 8000
    response: int = 8000
    reference: int = 4000
    column: int = 4000


@dataclass(frozen=True, slots=True)
class Rubric:
    """`reference` is where a row's reference answer stands: its label, or the column of that name.

    The reward of a verdict is made from the goodness of its criteria, each in [0, 1]: their mean weighted by
    `weight`, their product or their minimum, mapped from [0, 1] to `reward_range`.
    """

    origin: str
    instructions: str
    criteria: tuple[Criterion, ...]
    reasoning: Reasoning | None = None
    reference: str = "label"
    combine: Literal["mean", "product", "minimum"] = "mean"
    reward_range: tuple[float, float] = (0.0, 1.0)
    limits: Limits = field(default_factory=Limits)

    def schema(self, mode: Mode = "pointwise") -> dict[str, Any]:
        """The JSON schema of an answer: the reasoning first, where there is one, then the criteria in order.

        Pairwise, each criterion is which of two responses is better: "A", "B" or "tie".
        """
        keys: dict[str, Any] = {REASONING: self.reasoning.schema()} if self.reasoning else {}
        for criterion in self.criteria:
            pairwise = {"type": "string", "enum": [A, B, TIE]}
            keys[criterion.name] = pairwise if mode == "pairwise" else criterion.scale.schema()
        return {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}

    def reward(self, goodness: Mapping[str, float]) -> float:
        """The reward of a verdict from each criterion's goodness in [0, 1]."""
        values = [goodness[criterion.name] for criterion in self.criteria]
        if self.combine == "minimum":
            share = min(values)
        elif self.combine == "product":
            share = math.prod(values)
        else:
            weights = [criterion.weight for criterion in self.criteria]
            share = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
        low, high = self.reward_range
        return low + (high - low) * share

    def winner(self, winners: Mapping[str, str]) -> bool | None:
        """Whether the first of a pair won over all criteria by their weights; None for a tie.

        `winners` says of each criterion whether A (the first), B or neither is better.
        """
        mine = {name: {A: 1.0, B: 0.0}.get(won, 0.5) for name, won in winners.items()}
        difference = self.reward(mine) - self.reward({name: 1.0 - share for name, share in mine.items()})
        return None if abs(difference) < 1e-9 else difference > 0
