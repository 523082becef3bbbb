"""Rows as they are asked, and the rows of their answers before anybody graded them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openrlhf_ext.data.tables import Row
from openrlhf_ext.evaluation.answers import AnswerRow, content_keys
from openrlhf_ext.rewards.judge.source import spoken
from openrlhf_ext.types import FinishReason, Prompt


@dataclass(frozen=True, slots=True)
class Columns:
    """What stands where in a row. `named` are kept with an answer although they are one of these (groups)."""

    input: str
    label: str | None = None
    context: str | None = None
    named: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class AskedRow:
    """`prompt` is what the model reads, `blank` the row of an answer to it without the answer."""

    prompt: Prompt
    blank: AnswerRow
    where: str


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said. `failure`: why it said nothing."""

    text: str
    tokens: int
    finish: FinishReason
    failure: str | None = None


def asked_rows(rows: Sequence[Row], prompts: Sequence[Prompt], columns: Columns) -> list[AskedRow]:
    """One for each row and its prompt, keyed by what a person reads: the prompt before any template, the reference and
    the context. So a key is the same for every model.
    """
    contents = [(_shown(row[columns.input]), _text(row, columns.label), _text(row, columns.context)) for row in rows]
    apart = {columns.input, columns.label, columns.context} - set(columns.named)
    asked = []
    for row, prompt, content, key in zip(rows, prompts, contents, content_keys(contents), strict=True):
        shown, reference, context = content
        kept = {name: _json(value) for name, value in row.values.items() if name not in apart}
        blank = AnswerRow(
            key, 0, prompt.source, shown, "", "ungraded", reference=reference, context=context, columns=kept
        )
        asked.append(AskedRow(prompt, blank, row.where))
    return asked


def answered(blank: AnswerRow, sample: int, said: Said) -> AnswerRow:
    """The row of an answer, not graded yet; `failed` where there is none."""
    row = replace(blank, sample=sample, answer=said.text, tokens=said.tokens, finish=said.finish)
    if said.failure is None and said.finish != "abort":
        return row
    return replace(row, outcome="failed", notes={"failure": said.failure or "the engine gave it up"})


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else spoken(value)


def _text(row: Row, column: str | None) -> str | None:
    """Texts as they are, anything else as JSON (a list of references, a number)."""
    value = None if column is None else row[column]
    return value if value is None or isinstance(value, str) else json.dumps(_json(value), ensure_ascii=False)


def _json(value: Any) -> Any:
    """Dates and the like as texts."""
    return json.loads(json.dumps(value, default=str))
