"""What answers come to: counts and rates with 95 % intervals, for all of them, for each group and for each subject.

A question may have several answers (samples), which are no independent evidence. So every figure is a mean over
questions, and its interval is one over questions: the same answers copied tell no more.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from scipy import stats

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.agreement import LEVEL, Estimate, as_json, wilson
from openrlhf_ext.evaluation.answers import AnswerRow, Outcome
from openrlhf_ext.evaluation.generation import pass_at_k
from openrlhf_ext.evaluation.subjects import RolledUp, Taxonomy, roll_up, subjects_in, taxonomy_of_ids

OUTCOMES: tuple[str, ...] = get_args(Outcome)
RATED: tuple[Outcome, ...] = ("right", "wrong", "unanswered", "truncated")
"""The outcomes that enter rates: what failed, or nobody graded, is counted only."""
NONE = "(none)"
"""The group of rows that have no value in the column."""


@dataclass(frozen=True, slots=True)
class BySubject:
    """The places of rows by subject; `taxonomy` is that of the file, or what the ids make by their dots."""

    column: str
    taxonomy: Taxonomy
    rolled: RolledUp


def summarise(
    rows: Sequence[AnswerRow],
    *,
    k: Sequence[int] = (1,),
    groups: Sequence[str] = (),
    subject_column: str | None = None,
    taxonomy: Taxonomy | None = None,
) -> dict[str, Any]:
    """As JSON values: `all`, `groups` (column, value) and `subjects` (the hierarchy's nodes, with what fits in none).

    Each has the figures of `figures_of`, with pass@k for each of `k`. Raises DataError for a column that is in no row,
    and for a subject that is no text.
    """
    found: dict[str, Any] = {"level": LEVEL, "all": figures_of(rows, k), "groups": {}, "subjects": None}
    for column in groups:
        found["groups"][column] = {
            value: figures_of([rows[place] for place in places], k)
            for value, places in group_places(rows, column).items()
        }
    if subject_column is not None:
        found["subjects"] = subject_report(
            subject_places(rows, subject_column, taxonomy),
            lambda places: figures_of([rows[place] for place in places], k),
        )
    return found


def figures_of(rows: Sequence[AnswerRow], k: Sequence[int] = (1,)) -> dict[str, Any]:
    """Counts, and rates over the answers that could be scored; null where nothing can be told.

    `questions` and `answers` are all there are, `rated` those that enter rates.
    `accuracy` is the mean over questions of the part of their answers that is right (unanswered and truncated ones are
    not), with `rate`'s interval; `rates` has those of the other outcomes. `pass_at` is the unbiased pass@k of the
    questions with at least k rated answers, how many they are under `questions`. `score` is the mean over questions of
    their mean score, with Student's interval.
    """
    questions = by_question(rows)
    rated = [[row.outcome for row in own if row.outcome in RATED] for own in questions]
    rated = [own for own in rated if own]
    scores = [[row.score for row in own if row.score is not None] for own in questions]
    answers = sum(map(len, rated))
    rates = {outcome: as_json(rate([own.count(outcome) / len(own) for own in rated], answers)) for outcome in RATED}
    return {
        "questions": len(questions),
        "answers": len(rows),
        "rated": {"questions": len(rated), "answers": answers},
        "outcomes": {outcome: sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES},
        "accuracy": rates.pop("right"),
        "rates": rates,
        "pass_at": {str(each): _pass_at(rated, each) for each in sorted(set(k))},
        "score": as_json(mean([statistics.fmean(own) for own in scores if own])),
    }


def rate_of(figures: Mapping[str, Any], outcome: str) -> dict[str, float | None]:
    """The estimate of an outcome's rate in what `figures_of` found."""
    estimate: dict[str, float | None] = figures["accuracy"] if outcome == "right" else figures["rates"][outcome]
    return estimate


def by_question(rows: Sequence[AnswerRow]) -> list[list[AnswerRow]]:
    """The answers to each question."""
    questions: dict[str, list[AnswerRow]] = {}
    for row in rows:
        questions.setdefault(row.key, []).append(row)
    return list(questions.values())


def rate(parts: Sequence[float], answers: int) -> Estimate:
    """The mean of the questions' parts (0 to 1) with Wilson's interval; `answers` is how many they are of in all.

    With one answer to each question it is Wilson's interval of so many. With several its n is the effective number
    p (1 - p) / v, where v is the variance of the mean over questions (Kish's design effect, as in Dean and Pagano 2015,
    Journal of Survey Statistics and Methodology 3, 484-503), and at most `answers`: between the number of questions,
    where answers to one question are alike, and that of answers, where they are independent.
    """
    if not parts:
        return Estimate(math.nan, math.nan, math.nan)
    p = statistics.fmean(parts)
    variance = float(np.var(parts)) / len(parts)
    if p in (0.0, 1.0):
        effective = float(len(parts))
    else:
        effective = min(float(answers), p * (1 - p) / variance) if variance else float(answers)
    found = wilson(p * effective, effective)
    return Estimate(p, found.low, found.high)


def mean(values: Sequence[float]) -> Estimate:
    """With Student's interval; of one value there is none."""
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.nan)
    middle, error = statistics.fmean(values), float(stats.sem(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Estimate(middle, middle - half, middle + half)


def group_places(rows: Sequence[AnswerRow], column: str) -> dict[str, list[int]]:
    """The places of rows by their value in a column (`source` is one), in the order of the values; a row with a list of
    values counts in each. Raises DataError where no row has it.
    """
    require_column(rows, column)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        value = _column(row, column)
        for name in dict.fromkeys(map(_named, value if isinstance(value, list) and value else [value])):
            places.setdefault(name, []).append(place)
    return dict(sorted(places.items(), key=lambda item: (item[0] == NONE, item[0])))


def subject_places(rows: Sequence[AnswerRow], column: str, taxonomy: Taxonomy | None) -> BySubject:
    """Raises DataError where no row has the column, and for a subject that is no text."""
    require_column(rows, column)
    ids = [subjects_in(_column(row, column), f"the row {row.key}") for row in rows]
    if taxonomy is None:
        taxonomy = taxonomy_of_ids(id for own in ids for id in own)
    return BySubject(column, taxonomy, roll_up(ids, taxonomy))


def subject_report(found: BySubject, figures: Callable[[Sequence[int]], Mapping[str, Any]]) -> dict[str, Any]:
    """As JSON values: the figures of each node's places, and of those in none."""
    nodes = []
    for id, places in found.rolled.places.items():
        subject = found.taxonomy.subjects[id]
        about = {"id": id, "name": subject.name, "parent": subject.parent, "depth": found.taxonomy.depth(id)}
        nodes.append({**about, **figures(places)})
    return {
        "column": found.column,
        "nodes": nodes,
        "unknown": dict(found.rolled.unknown),
        "without": figures(found.rolled.without) if found.rolled.without else None,
    }


def require_column(rows: Sequence[AnswerRow], column: str) -> None:
    if not any(column == "source" or column in row.columns for row in rows):
        known = ", ".join(sorted({"source", *(name for row in rows for name in row.columns)}))
        raise DataError(f"no answer has the column {column!r}: the columns there are {known}.")


def _column(row: AnswerRow, column: str) -> Any:
    return row.source if column == "source" and column not in row.columns else row.columns.get(column)


def _named(value: Any) -> str:
    if value is None or value == "" or value == []:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pass_at(rated: Sequence[list[Outcome]], k: int) -> dict[str, Any]:
    enough = [own for own in rated if len(own) >= k]
    found = rate([pass_at_k(len(own), own.count("right"), k) for own in enough], sum(map(len, enough)))
    return {**as_json(found), "questions": len(enough)}
