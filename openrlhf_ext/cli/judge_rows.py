"""Labelled rows as cases: a response and whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.config.judge_command import LabelledDataSection
from openrlhf_ext.data.tables import Row, load_rows, require_columns
from openrlhf_ext.errors import DataError
from openrlhf_ext.rewards.judge.prompt import Case, check_case
from openrlhf_ext.rewards.judge.rubric import Mode, Rubric

RIGHT = ("1", "true", "yes", "right", "correct")
WRONG = ("0", "false", "no", "wrong", "incorrect")


@dataclass(frozen=True, slots=True)
class LabelledCase:
    """`row` is the number of the row it is from: a right and a wrong response of one row belong together."""

    case: Case
    right: bool
    row: int


def labelled_cases(data: LabelledDataSection, rubric: Rubric, mode: Mode) -> list[LabelledCase]:
    """Every response with its label, in the order of the rows; of a row with two, the right one first.

    Raises DataError for a column or a label that is no use, RewardError for a row that lacks what the rubric shows.
    """
    assert data.dataset is not None
    rows = load_rows(data.dataset, split=data.split, max_samples=data.max_samples)
    keys = {"prompt_key": data.prompt_key, "response_key": data.response_key, "label_key": data.label_key,
            "right_key": data.right_key, "wrong_key": data.wrong_key, "reference_key": data.reference_key}  # fmt: skip
    require_columns(rows, {column: f"--data.{flag}" for flag, column in keys.items() if column})
    cases = [case for number, row in enumerate(rows) for case in _of_row(data, row, number)]
    for item in cases:
        check_case(rubric, mode, item.case)
    return cases


def _of_row(data: LabelledDataSection, row: Row, number: int) -> list[LabelledCase]:
    def case(column: str | None) -> Case:
        assert column is not None
        prompt = "" if data.prompt_key is None else _text(row, data.prompt_key)
        reference = None if data.reference_key is None else row[data.reference_key]
        return Case(prompt, _text(row, column), reference, row.values, row.where)

    if data.right_key is not None:
        return [LabelledCase(case(data.right_key), True, number), LabelledCase(case(data.wrong_key), False, number)]
    return [LabelledCase(case(data.response_key), _is_right(data, row), number)]


def _text(row: Row, column: str) -> str:
    """A conversation is its turns' contents."""
    value: Any = row[column]
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n\n".join(str(turn["content"]) for turn in value)
    raise DataError(f"{row.where}: column {column!r} is {type(value).__name__}, not a text.")


def _is_right(data: LabelledDataSection, row: Row) -> bool:
    assert data.label_key is not None
    label = _label(row[data.label_key])
    if data.right_values:
        return label in data.right_values
    right = is_right(label)
    if right is None:
        raise DataError(
            f"{row.where}: the label {label!r} (--data.label_key {data.label_key}) is neither {', '.join(RIGHT)} nor "
            f"{', '.join(WRONG)}: say which labels mean right by --data.right_values."
        )
    return right


def is_right(value: Any) -> bool | None:
    """What a label or a verdict says in one of the usual words; None for another word."""
    word = _label(value).lower()
    return word in RIGHT if word in RIGHT or word in WRONG else None


def _label(value: Any) -> str:
    number = isinstance(value, float) and value.is_integer()
    return str(int(value) if number else value).strip()
