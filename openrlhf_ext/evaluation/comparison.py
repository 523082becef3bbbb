"""Two models on the same questions: what they differ in, overall, by group and by subject.

Questions are paired by their content's key. A question counts where both models have an answer to it that entered the
rate; what is left over is listed. With one answer to each question the outcomes are compared (McNemar), with several
the parts of them that count, question by question.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from statsmodels.stats.multitest import multipletests

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.agreement import LEVEL, as_json
from openrlhf_ext.evaluation.answers import AnswerRow
from openrlhf_ext.evaluation.figures import (
    RATED,
    by_question,
    group_places,
    mean,
    rate,
    subject_places,
    subject_report,
)
from openrlhf_ext.evaluation.paired import Difference, difference_of_means, difference_of_rates
from openrlhf_ext.evaluation.subjects import Taxonomy

MEASURES = ("rate", "score", "logprob")


@dataclass(frozen=True, slots=True)
class _Question:
    """The answers of both models to it."""

    a: Sequence[AnswerRow]
    b: Sequence[AnswerRow]

    @property
    def row(self) -> AnswerRow:
        return self.a[0]


def compare(
    a: Sequence[AnswerRow],
    b: Sequence[AnswerRow],
    *,
    counts: Literal["right", "wrong"] = "right",
    groups: Sequence[str] = (),
    subject_column: str | None = None,
    taxonomy: Taxonomy | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """As JSON values; differences are B's minus A's.

    `rate` is of the answers whose outcome is `counts`, `score` the mean score (null where scores say no more than the
    outcomes), `logprob` the reference's log-prob per token; each null where the tables do not have it. Columns are
    A's. In `groups` and `subjects` every p has beside it `p_holm`, Holm's for as many comparisons as there are.
    Raises DataError where the tables share no question, and for a column that is in no row.
    """
    of_a, of_b = ({own[0].key: own for own in by_question(rows)} for rows in (a, b))
    shared = [key for key in of_a if key in of_b]
    if not shared:
        raise DataError(
            f"none of the {len(of_a)} questions of A is among the {len(of_b)} of B: compare results on the same data."
        )
    questions = [_Question(of_a[key], of_b[key]) for key in shared]
    scores_tell = _scores_tell(questions)

    def cell(places: Sequence[int]) -> dict[str, Any]:
        chosen = [questions[place] for place in places]
        return {
            "rate": _rate(chosen, counts, seed),
            "score": _means(chosen, _scores, seed) if scores_tell else None,
            "logprob": _means(chosen, _logprobs, seed),
        }

    firsts = [question.row for question in questions]
    found: dict[str, Any] = {
        "level": LEVEL,
        "counts": counts,
        "questions": len(shared),
        "unrated": [own.row.key for own in questions if not (_parts(own.a, counts) and _parts(own.b, counts))],
        "only_a": [key for key in of_a if key not in of_b],
        "only_b": [key for key in of_b if key not in of_a],
        "columns_differ": sum(own.a[0].columns != own.b[0].columns for own in questions),
        **cell(range(len(questions))),
        "groups": {},
        "subjects": None,
    }
    for column in groups:
        cells = {value: cell(places) for value, places in group_places(firsts, column).items()}
        _correct(list(cells.values()))
        found["groups"][column] = cells
    if subject_column is not None:
        report = subject_report(subject_places(firsts, subject_column, taxonomy), cell)
        _correct([*report["nodes"], *filter(None, [report["without"]])])
        found["subjects"] = report
    return found


def _scores_tell(questions: Sequence[_Question]) -> bool:
    """Whether scores say more than the outcomes."""
    rows = [row for own in questions for row in (*own.a, *own.b) if row.score is not None]
    return any(row.outcome not in RATED or row.score != float(row.outcome == "right") for row in rows)


def _rate(chosen: Sequence[_Question], counts: str, seed: int) -> dict[str, Any] | None:
    parts = [(a, b) for own in chosen if (a := _parts(own.a, counts)) and (b := _parts(own.b, counts))]
    return compare_rates(parts, seed) if parts else None


def compare_rates(parts: Sequence[tuple[Sequence[bool], Sequence[bool]]], seed: int) -> dict[str, Any]:
    """The cell of questions with A's and B's answers to each, one or more: whether each of them counts."""
    of_a, of_b = ([statistics.fmean(pair[side]) for pair in parts] for side in (0, 1))
    if all(len(a) == len(b) == 1 for a, b in parts):
        found = difference_of_rates([bool(part) for part in of_a], [bool(part) for part in of_b])
    else:
        found = difference_of_means(of_a, of_b, seed=seed)
    sides = [as_json(rate(of, sum(len(pair[side]) for pair in parts))) for side, of in enumerate((of_a, of_b))]
    return _cell(found, *sides)


def _means(
    chosen: Sequence[_Question], values: Callable[[Sequence[AnswerRow]], list[float]], seed: int
) -> dict[str, Any] | None:
    pairs = [
        (statistics.fmean(a), statistics.fmean(b)) for own in chosen if (a := values(own.a)) and (b := values(own.b))
    ]
    if not pairs:
        return None
    of_a, of_b = [a for a, _ in pairs], [b for _, b in pairs]
    return _cell(difference_of_means(of_a, of_b, seed=seed), as_json(mean(of_a)), as_json(mean(of_b)))


def _cell(found: Difference, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {**as_json(found), "a": a, "b": b, "told": found.p < 1 - LEVEL}


def _parts(rows: Sequence[AnswerRow], counts: str) -> list[bool]:
    return [row.outcome == counts for row in rows if row.outcome in RATED]


def _scores(rows: Sequence[AnswerRow]) -> list[float]:
    return [row.score for row in rows if row.score is not None]


def _logprobs(rows: Sequence[AnswerRow]) -> list[float]:
    return [
        row.reference_logprob / row.reference_tokens
        for row in rows
        if row.reference_logprob is not None and row.reference_tokens
    ]


def _correct(cells: Sequence[dict[str, Any]]) -> None:
    """Put Holm's p beside each p; `told` is then by it."""
    for name in MEASURES:
        own = [cell[name] for cell in cells if cell[name] is not None and cell[name]["p"] is not None]
        if own:
            corrected = multipletests([each["p"] for each in own], alpha=1 - LEVEL, method="holm")[1]
            for each, p in zip(own, corrected, strict=True):
                each.update(p_holm=float(p), told=bool(p < 1 - LEVEL))
