"""How a judge is asked."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards.judge.rubric import Mode


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """`samples` verdicts are asked for each question and voted on; more than one needs a temperature.

    Pairwise, at most `max_pairs` pairs of a group are compared (None: all; at least as many as put each response
    in one), each in both orders. `seed` makes the draws of a judge with a temperature others;
    a question's own seed depends on it and on the question alone.
    """

    mode: Mode = "pointwise"
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 256
    max_pairs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"a judge is asked for {self.samples} samples: give at least 1.")
        if self.samples > 1 and self.temperature <= 0:
            raise ConfigError(
                f"a judge at temperature 0 gives {self.samples} times the same verdict: give it a temperature above 0, "
                "or 1 sample."
            )
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ConfigError(f"a judge compares {self.max_pairs} pairs of a group: give at least 1, or none for all.")
