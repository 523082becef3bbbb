"""What the flags of `assess` name, as tables of answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_ext.assess.items import Table
from openrlhf_ext.cli.judge_rows import RIGHT, WRONG, is_right
from openrlhf_ext.config.assess import AssessConfig, AssessedDataSection
from openrlhf_ext.data.tables import Row, load_rows, require_columns
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import Answerer, AnswerRow, Outcome, content_keys, read_answers


def tables_of(cfg: AssessConfig) -> list[Table]:
    """One for each model. Raises DataError for what cannot be read as answers."""
    if cfg.assess.answers:
        return [Table(*read_answers(Path(folder).expanduser())) for folder in cfg.assess.answers]
    data = cfg.data
    assert data.dataset is not None
    rows = load_rows(data.dataset, split=data.split)
    named = ("prompt_key", "answer_key", "other_answer_key", "context_key", "reference_key", "verdict_key")
    columns = {getattr(data, name): f"--data.{name}" for name in named if getattr(data, name) is not None}
    require_columns(rows, columns)
    tables = [_table(data, rows, data.answer_key, data.model)]
    if data.other_answer_key is not None:
        tables.append(_table(data, rows, data.other_answer_key, data.other_model))
    return tables


def _table(data: AssessedDataSection, rows: Sequence[Row], column: str, name: str | None) -> Table:
    """The fingerprint is of all that was answered: nobody knows more of the model."""
    contents = [
        (
            _text(row, data.prompt_key),
            _optional(row, data.reference_key),
            _optional(row, data.context_key),
        )
        for row in rows
    ]
    answers = [
        AnswerRow(
            key=key,
            sample=0,
            source=row.source,
            prompt=prompt,
            answer=_text(row, column),
            outcome=_outcome(row, data.verdict_key),
            reference=reference,
            context=context,
        )
        for row, key, (prompt, reference, context) in zip(rows, content_keys(contents), contents, strict=True)
    ]
    name = name or f"{column} of {data.dataset}"
    told = json.dumps([name, [[each.key, each.answer] for each in answers]])
    fingerprint = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Table(Answerer(name, fingerprint), answers)


def _outcome(row: Row, column: str | None) -> Outcome:
    if column is None or row[column] is None:
        return "ungraded"
    right = is_right(row[column])
    if right is None:
        raise DataError(
            f"{row.where}: the verdict {str(row[column])[:40]!r} (--data.verdict_key {column}) is neither "
            f"{', '.join(RIGHT)} nor {', '.join(WRONG)}."
        )
    return "right" if right else "wrong"


def _optional(row: Row, column: str | None) -> str | None:
    return None if column is None or row[column] is None else _text(row, column)


def _text(row: Row, column: str) -> str:
    """A text; of several (paragraphs of a source, turns of a conversation) one after the other."""
    value: Any = row[column]
    parts = value if isinstance(value, list | tuple) else [value]
    texts = [part.get("content") if isinstance(part, dict) else part for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise DataError(f"{row.where}: column {column!r} is {type(value).__name__}, not a text: name another column.")
    return "\n\n".join(map(str, texts))
