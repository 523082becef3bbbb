"""Answers by the letters of their outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrlhf_ext.evaluation.answers import AnswerRow

LETTERS = {"r": "right", "w": "wrong", "u": "unanswered", "t": "truncated", "f": "failed", "g": "ungraded"}


def row(
    key: str, outcome: str, sample: int = 0, *, score: float | None = None, columns: Mapping[str, Any] | None = None
) -> AnswerRow:
    return AnswerRow(key, sample, "set", f"question {key}", "answer", outcome, score=score, columns=columns or {})  # type: ignore[arg-type]


def answers(outcomes: str) -> list[AnswerRow]:
    """One question for each letter."""
    return [row(f"q{i}", LETTERS[letter]) for i, letter in enumerate(outcomes)]
