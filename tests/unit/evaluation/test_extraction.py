"""Answer rules: what is found in a text, what is not, and what it is the same as."""

from __future__ import annotations

from typing import Any

import pytest

from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.evaluation.extraction import Case, Graded, answer_rule, check_labels, graded


def found(spec: str, text: str) -> str | None:
    result = answer_rule(spec).find(text)
    return None if result is None else result.text


def outcome(spec: str, text: str, label: Any, *, cut: bool = False) -> str:
    return graded(answer_rule(spec), Case(text, label, cut)).outcome


# (rule, text, label, outcome): the expected text stands in many of them without being the answer
CASES = [
    ("exact", " Paris. ", "paris", "right"),
    ("exact", "Not Paris", "Paris", "wrong"),
    ("exact", "It is Paris", "Paris", "wrong"),
    ("exact", "1,000.0", "1000", "right"),
    ("exact", " \n", "Paris", "unanswered"),
    ("exact", "no", ["No", "none"], "right"),
    ("first_letter", "(B) aspirin", "B", "right"),
    ("first_letter", "A patient with B", "A", "unanswered"),
    ("first_letter", "C. Because B is wrong", "(b)", "wrong"),
    ("number_after:####", "18 eggs\n#### 18", "so 3 + 15\n#### 18", "right"),
    ("number_after:####", "it is 18", "18", "unanswered"),
    ("number_after:####", "18 #### 19", "18", "wrong"),
    ("number_after:####", "#### 18 no, #### 20", "18", "wrong"),
    ("number_after:####", "#### $1,800.50", "1800.5", "right"),
    ("number_after:####", "#### B18", "18", "unanswered"),
    ("number_after:####", "#### \N{MINUS SIGN}3", "-3", "right"),
    ("number_after:####", "#### 180", "18", "wrong"),
    ("number_after:####", "#### 1/2", "0.5", "right"),
    ("number_after:answer is", "the answer is: **7** apples of 18", "7", "right"),
    ("last_number", "12 and then 18 dollars", "18", "right"),
    ("last_number", "18 of COVID-19 and B12", "19", "wrong"),
    ("last_number", "COVID-19 and B12", "19", "unanswered"),
    ("last_number", "from 10-12", "12", "right"),
    ("last_number", "x = -5.", "-5", "right"),
    ("tag:answer", "<answer>Rome</answer> no: <answer> Paris </answer>", "Paris", "right"),
    ("tag:answer", "Paris <answer>Rome</answer>", "Paris", "wrong"),
    ("tag:answer", "<answer>Paris", "Paris", "unanswered"),
    ("tag:answer", "</answer>Paris<answer>", "Paris", "unanswered"),
    ("tag:answer", "<answer> </answer>", "Paris", "unanswered"),
    (r"pattern:verdict: (\w+)", "verdict: safe, verdict: harmful", "harmful", "right"),
    (r"pattern:verdict: (\w+)", "safe", "safe", "unanswered"),
    ("math", r"so \boxed{\frac{1}{2}}", "0.5", "right"),
    ("math", "nothing to see", "0.5", "unanswered"),
    ("math", "2 + 2 = 5", "4", "wrong"),
]


@pytest.mark.parametrize(("spec", "text", "label", "expected"), CASES)
def test_the_outcome_of_a_rule(spec: str, text: str, label: Any, expected: str) -> None:
    assert outcome(spec, text, label) == expected


@pytest.mark.parametrize(
    ("spec", "text", "label", "expected"),
    [
        ("exact", "Paris", "Paris", "truncated"),  # it may have gone on
        ("number_after:####", "#### 18", "18", "truncated"),  # 180?
        ("number_after:####", "#### 18 eggs and", "18", "right"),
        ("last_number", "18 and then", "18", "right"),
        ("last_number", "and then 1", "18", "truncated"),
        ("first_letter", "B", "B", "right"),  # a letter is whole
        ("first_letter", "The patient who", "B", "truncated"),
        ("tag:answer", "<answer>Par", "Paris", "truncated"),
        (r"pattern:verdict: (\w+)", "verdict: harm", "harm", "truncated"),
    ],
)
def test_a_text_that_was_cut(spec: str, text: str, label: str, expected: str) -> None:
    assert outcome(spec, text, label, cut=True) == expected


def test_what_is_told_of_an_answer() -> None:
    assert graded(answer_rule("last_number"), Case("it is $1,234.", "1234", False)) == Graded("right", "1,234", 1.0)
    assert graded(answer_rule("exact"), Case("b", "a", False)) == Graded("wrong", "b", 0.0)
    assert graded(answer_rule("exact"), Case("", "a", False)) == Graded("unanswered", None, 0.0)


def test_numbers_as_they_are_found() -> None:
    texts = ["a 12%", "v1.2.3", "12,345,6", "1e5", ".5", "-7", "x-7", "\N{EURO SIGN}5", "12th", "A1"]
    assert [found("last_number", text) for text in texts] == [
        "12", None, "6", "1e5", ".5", "-7", None, "5", "12", None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("expected", "no rule 'expected'"),
        ("tag", "written tag:NAME"),
        ("tag:", "written tag:NAME"),
        ("exact:x", "written exact"),
        ("number_after:", "written number_after:MARK"),
        ("pattern:(", "no regular expression"),
        ("first_letter:a", "letters, such as"),
        ("first_letter:AA", "letters, such as"),
        ("first_letter:", "letters, such as"),
    ],
)
def test_rules_that_are_none(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        answer_rule(spec)


@pytest.mark.parametrize(
    ("spec", "label"),
    [("first_letter", "aspirin"), ("last_number", "many"), ("number_after:####", "#### many"), ("exact", ""),
     ("exact", None), ("tag:answer", [])],
)  # fmt: skip
def test_labels_that_no_answer_can_be(spec: str, label: Any) -> None:
    with pytest.raises(DataError, match=r"^row 2 of set: no answer could be its reference by the rule"):
        check_labels(answer_rule(spec), [("row 1 of set", "#### 5" if "####" in spec else "B" if spec != "last_number"
                                          else "5"), ("row 2 of set", label)])  # fmt: skip
