"""Evaluations of a run: their answers on disk by step, and their figures as metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_ext.condition import find_metric
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import AnswerRow, read_answers
from openrlhf_ext.evaluation.asked import AskedRow
from openrlhf_ext.evaluation.generation import SampledAnswer
from openrlhf_ext.evaluation.record import EvaluationRecord, rows_of
from openrlhf_ext.types import Prompt, Rollout, Score, ScoreFailure


def row(key: str, outcome: str, source: str = "med", **columns: object) -> AnswerRow:
    score = {"right": 1.0, "failed": None}.get(outcome, 0.0)
    return AnswerRow(key, 0, source, f"question {key}", "said", outcome, score=score, columns=columns)  # type: ignore[arg-type]


ROWS = [
    row("a", "right", kind="easy", subject="1.1"),
    row("b", "wrong", kind="easy", subject=["1.2", "2"]),
    row("c", "unanswered", "law", kind="hard", subject="9"),
    row("d", "failed", "law", kind="hard", subject="2"),
]


def record(folder: Path | None, **kwargs: object) -> EvaluationRecord:
    return EvaluationRecord(folder, "out", "run-1", "exact", **kwargs)  # type: ignore[arg-type]


def test_every_evaluation_is_a_table_of_a_model_of_its_own(tmp_path: Path) -> None:
    kept = record(tmp_path)
    kept.keep(0, ROWS)
    kept.keep(100, ROWS)
    before, rows = read_answers(tmp_path / "step-00000000")
    after, _ = read_answers(tmp_path / "step-00000100")
    assert rows == ROWS
    assert (before.name, after.name) == ("out step 0", "out step 100")
    assert before.fingerprint != after.fingerprint
    replace(kept, fingerprint="run-2").keep(0, ROWS)
    assert read_answers(tmp_path / "step-00000000")[0].fingerprint != before.fingerprint


def test_figures_of_sources_groups_and_subjects_have_names(tmp_path: Path) -> None:
    metrics = record(None, k=(1,), groups=("kind",), subject_column="subject").keep(7, ROWS)
    assert not list(tmp_path.iterdir())
    expected = {
        "eval/med/accuracy": 1 / 2, "eval/law/accuracy": 0.0, "eval/all/accuracy": 1 / 3, "eval/all/pass@1": 1 / 3,
        "eval/all/unanswered": 1 / 3, "eval/all/truncated": 0.0, "eval/all/questions": 4.0, "eval/law/failed": 1.0,
        "eval/kind/easy/accuracy": 1 / 2, "eval/kind/hard/questions": 2.0, "eval/subject/1/accuracy": 1 / 2,
        "eval/subject/1.1/accuracy": 1.0, "eval/subject/2/questions": 2.0, "eval/subject/2/accuracy": 0.0,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert find_metric("eval_accuracy", metrics) == "eval/all/accuracy"
    assert find_metric("subject/1_accuracy", metrics) == "eval/subject/1/accuracy"


def test_what_cannot_be_told_is_nan() -> None:
    metrics = record(None).keep(0, [row("a", "failed")])
    assert math.isnan(metrics["eval/med/accuracy"])
    assert metrics["eval/med/failed"] == 1.0


def test_a_column_that_no_row_has_is_found_before_anything_is_answered() -> None:
    with pytest.raises(DataError, match=r"no answer has the column 'topic'.*kind"):
        record(None, groups=("topic",)).check([row("a", "ungraded", kind="easy")])


def sampled(place: int, score: Score | ScoreFailure, **kwargs: object) -> SampledAnswer:
    given = {"text": "said", "finish_reason": "stop", "role": ""} | kwargs
    return SampledAnswer(
        place,
        Rollout("p", 0, (1, 2, 3), (False, True, True), (0.0,) * 3, versions=(0, 0), **given),  # type: ignore[arg-type]
        score,
    )


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (sampled(0, Score(1.0)), "right"),
        (sampled(0, Score(-1.0)), "wrong"),
        (sampled(0, Score(3.0, filter_value=0.2)), "wrong"),
        (sampled(0, Score(0.0), text=" "), "unanswered"),
        (sampled(0, Score(0.0), text="", finish_reason="length"), "truncated"),
        (sampled(0, Score(1.0), finish_reason="abort"), "failed"),
        (sampled(0, ScoreFailure("timeout", "too slow")), "failed"),
    ],
)
def test_a_reward_is_an_outcome(answer: SampledAnswer, outcome: str) -> None:
    blank = AnswerRow("key", 0, "med", "question", "", "ungraded", columns={"kind": "easy"})
    (found,) = rows_of([AskedRow(Prompt("p", (1,), "question"), blank, "row 1")], [answer])
    assert (found.outcome, found.tokens, found.key) == (outcome, 2, "key")


def test_in_a_game_an_answer_has_its_role() -> None:
    blank = AnswerRow("key", 0, "med", "question", "", "ungraded")
    (found,) = rows_of([AskedRow(Prompt("p", (1,), "q"), blank, "row 1")], [sampled(0, Score(1.0), role="attacker")])
    assert found.columns == {"role": "attacker"}
