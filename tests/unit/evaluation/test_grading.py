"""Outcomes from rules and rewards, each counted as what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from openrlhf_ext.data.tables import Row
from openrlhf_ext.errors import RewardError
from openrlhf_ext.evaluation.answers import AnswerRow
from openrlhf_ext.evaluation.asked import AskedRow, Columns, asked_rows
from openrlhf_ext.evaluation.extraction import answer_rule
from openrlhf_ext.evaluation.grading import RewardGrader, RuleGrader
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Prompt


def answered(answers: Sequence[str], label: Any = "B", **fields: Any) -> list[tuple[AskedRow, AnswerRow]]:
    pairs = []
    for i, answer in enumerate(answers):
        blank = AnswerRow(str(i), 0, "set", "Which?", answer, "ungraded", **fields)
        pairs.append((AskedRow(Prompt(str(i), (), "Which?", label), blank, f"row {i}"), blank))
    return pairs


def outcomes(rows: Sequence[AnswerRow]) -> dict[str, int]:
    return dict(Counter(row.outcome for row in rows))


def quiet(done: int, of: int) -> None:
    assert 0 <= done <= of


def test_a_rule_counts_each_kind() -> None:
    pairs = answered(["B", "C", "it depends"]) + answered(["because"], finish="length")
    pairs.append((pairs[0][0], AnswerRow("f", 0, "set", "Which?", "", "failed", notes={"failure": "timeout"})))
    rows = RuleGrader(answer_rule("first_letter"), 5.0).grade(pairs, quiet)
    assert outcomes(rows) == {"right": 1, "wrong": 1, "unanswered": 1, "truncated": 1, "failed": 1}
    assert [row.score for row in rows] == [1.0, 0.0, 0.0, 0.0, None]
    assert rows[0].extracted == "B" and rows[4].notes == {"failure": "timeout"}


def test_a_pattern_without_end_fails_alone() -> None:
    """A pattern that backtracks for ever on one answer is ended there; the others have their outcomes."""
    rule = answer_rule(r"pattern:(a+)+\$")
    rows = RuleGrader(rule, 0.5).grade(answered(["aa$", "a" * 60 + "b", "none"], "aa$"), quiet)
    assert [row.outcome for row in rows] == ["right", "failed", "unanswered"]
    assert rows[1].score is None and "too long" in rows[1].notes["failure"]


SOURCE = """
def reward_func(queries, prompts, labels, **kwargs):
    answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts)]
    nan = float("nan")
    return {"rewards": [nan if answer == "say nothing" else float(answer == label)
                        for answer, label in zip(answers, labels)]}
"""


def graded(tmp_path: Path, answers: Sequence[str], passes: Any = lambda score: score >= 0.5) -> list[AnswerRow]:
    file = tmp_path / "reward.py"
    file.write_text(SOURCE)
    with load_reward([str(file)], RewardSettings("drop_group", max_retries=0)) as reward:
        return RewardGrader(reward, passes, None, None).grade(answered(answers), quiet)


def test_rewards_pass_or_not_and_what_fails_fails_alone(tmp_path: Path) -> None:
    rows = graded(tmp_path, ["B", "C", "", "say nothing", "B"])
    assert [row.outcome for row in rows] == ["right", "wrong", "unanswered", "failed", "right"]
    assert [row.score for row in rows] == [1.0, 0.0, 0.0, None, 1.0]
    assert "not_finite" in rows[3].notes["failure"]


def test_without_a_threshold_nobody_is_right(tmp_path: Path) -> None:
    rows = graded(tmp_path, ["B", "C"], lambda score: None)
    assert [(row.outcome, row.score) for row in rows] == [("ungraded", 1.0), ("ungraded", 0.0)]


def test_a_source_that_scores_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="not one of 2 answers could be scored"):
        graded(tmp_path, ["say nothing", "say nothing"])


def test_no_answer_of_a_verifier_is_unanswered() -> None:
    settings = RewardSettings("drop_group", rules=_rules(r"#### (\d+)"))
    with load_reward(["verify:exact"], settings) as reward:
        grader = RewardGrader(reward, lambda score: score >= 0.5, None, None)
        rows = grader.grade(answered(["#### 5", "#### 6", "5"], "5"), quiet)
    assert [row.outcome for row in rows] == ["right", "wrong", "unanswered"]


def _rules(pattern: str) -> Any:
    from openrlhf_ext.rewards.sources import RuleSettings

    return RuleSettings(answer_pattern=pattern)


def test_rows_are_keyed_by_what_a_person_reads() -> None:
    messages = [{"role": "user", "content": "Why?"}]
    rows = [
        Row({"q": "Why?", "a": 5, "note": "n", "kind": "x"}, "set", 0),
        Row({"q": messages, "a": 5, "note": "n", "kind": "y"}, "set", 1),
    ]
    prompts = [Prompt("0", (1,), "<templated>", 5, "set"), Prompt("1", (2,), "<other>", 5, "set", messages=messages)]
    first, second = asked_rows(rows, prompts, Columns("q", "a", "note", ("a",)))
    assert first.blank.prompt == second.blank.prompt == "Why?"
    assert second.blank.key == first.blank.key.removesuffix("-0") + "-1"
    assert first.blank.reference == "5" and first.blank.context == "n"
    assert first.blank.columns == {"a": 5, "kind": "x"}
