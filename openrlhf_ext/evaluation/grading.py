"""From answers to outcomes: by an answer rule, or by a source of rewards and a threshold."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Protocol

from openrlhf_ext.errors import RewardError
from openrlhf_ext.evaluation.answers import AnswerRow
from openrlhf_ext.evaluation.asked import AskedRow
from openrlhf_ext.evaluation.extraction import AnswerRule, Case, graded, graded_in_time
from openrlhf_ext.ports import RewardFn
from openrlhf_ext.types import Rollout, Score, ScoreFailure

GRADED_AT_ONCE = 1024
"""Answers of one call of a source."""

Progress = Callable[[int, int], None]
"""Called with (answers graded, answers to grade)."""

Answered = Sequence[tuple[AskedRow, AnswerRow]]


class Grader(Protocol):
    def grade(self, answered: Answered, progress: Progress) -> list[AnswerRow]:
        """The rows with their outcomes, in order; those that have no answer stay `failed`."""
        ...


class RuleGrader:
    """By an answer rule; each answer has `limit_s` seconds where the rule has no bound of its own."""

    def __init__(self, rule: AnswerRule, limit_s: float) -> None:
        self._rule = rule
        self._limit_s = limit_s

    def grade(self, answered: Answered, progress: Progress) -> list[AnswerRow]:
        cases = [Case(row.answer, asked.prompt.label, row.finish == "length") for asked, row in answered]
        if not self._rule.unbounded:
            found = [graded(self._rule, case) for case in cases]
        else:
            # A process of its own is forked for them: this one holds an engine, or has held one.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found = []
                for start in range(0, len(cases), GRADED_AT_ONCE):
                    part = cases[start : start + GRADED_AT_ONCE]
                    found += pool.submit(graded_in_time, self._rule.spec, part, self._limit_s).result()
                    progress(len(found), len(cases))
        return [
            row if row.outcome == "failed" else replace(
                row, outcome=each.outcome, extracted=each.extracted, score=each.score,
                notes=row.notes if each.outcome != "failed" else {**row.notes, "failure": "the rule took too long"},
            )
            for (_, row), each in zip(answered, found, strict=True)
        ]  # fmt: skip


class RewardGrader:
    """By rewards. `passes` says of a score whether it is a right answer's (None: nobody knows); `tokens` are those of
    a text, where the tokenizer is known.
    """

    def __init__(
        self,
        reward: RewardFn,
        passes: Callable[[float], bool | None],
        tokens: Callable[[str], Sequence[int]] | None,
        ends: int | None,
    ) -> None:
        self._reward = reward
        self._passes = passes
        self._tokens = tokens
        self._ends = ends

    def grade(self, answered: Answered, progress: Progress) -> list[AnswerRow]:
        """Raises RewardError where not a single answer could be scored."""
        found = [row for _, row in answered]
        places = [place for place, row in enumerate(found) if row.outcome != "failed"]
        for start in range(0, len(places), GRADED_AT_ONCE):
            part = places[start : start + GRADED_AT_ONCE]
            # Each answer is a group of its own: one that cannot be scored takes no other with it.
            groups = [(answered[i][0].prompt, [self._rollout(*answered[i])]) for i in part]
            for place, scores in zip(part, self._reward.score(groups), strict=True):
                told = scores if isinstance(scores, ScoreFailure) else scores[0]
                found[place] = by_score(found[place], told, self._passes)
            progress(start + len(part), len(places))
        failed = [found[place] for place in places if found[place].outcome == "failed"]
        if places and len(failed) == len(places):
            raise RewardError(f"not one of {len(places)} answers could be scored ({failed[0].notes['failure']}).")
        return found

    def _rollout(self, asked: AskedRow, row: AnswerRow) -> Rollout:
        """The answer as a rollout. Of an endpoint's tokens only the number is known."""
        prompt: tuple[int, ...] = (0,)
        answer: tuple[int, ...] = (0,) * row.tokens
        if self._tokens is not None:
            prompt, answer = asked.prompt.token_ids, tuple(self._tokens(row.answer))
            answer += (self._ends,) if self._ends is not None and row.finish == "stop" else ()
        return Rollout.of_turn(
            prompt, answer, [0.0] * len(answer), prompt_id=asked.prompt.id, sample=row.sample, text=row.answer,
            finish_reason="length" if row.finish == "length" else "stop", versions=(0, 0),
        )  # fmt: skip


def by_score(row: AnswerRow, score: Score | ScoreFailure, passes: Callable[[float], bool | None]) -> AnswerRow:
    """The row of an answer with the outcome that its score means."""
    if isinstance(score, ScoreFailure):
        failure = f"{score.reason}: {score.detail}"
        return replace(row, outcome="failed", notes={**row.notes, "failure": failure})
    value = score.value if score.filter_value is None else score.filter_value
    right = passes(value)
    row = replace(row, score=value, notes={**row.notes, **score.notes})
    if right is None:
        return replace(row, outcome="ungraded")
    without = any(name.endswith("/no_answer") and told == 1.0 for name, told in score.parts.items())
    if not right and (without or not row.answer.strip()):
        return replace(row, outcome="truncated" if row.finish == "length" else "unanswered")
    return replace(row, outcome="right" if right else "wrong")
