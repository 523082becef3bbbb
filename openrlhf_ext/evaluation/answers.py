"""The answers of one model to rows, as a table on disk: `eval` writes them; comparisons and people's judgements read.

A folder of results holds `answers.parquet` (one row for each answer) beside `result.json` (the figures). Two tables
are paired by (`key`, `sample`): the key is the row's content, so the order of rows and their numbers mean nothing.
Which model answered is part of the table, by a name and by a fingerprint that changes when its weights do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from openrlhf_ext.data.tables import content_id
from openrlhf_ext.errors import DataError
from openrlhf_ext.track.files import sync_folder

ANSWERS, RESULT = "answers.parquet", "result.json"

Outcome = Literal["right", "wrong", "unanswered", "truncated", "failed", "ungraded"]
"""`unanswered`: the rule found no answer in the text; `truncated`: it ended at the limit without one; `failed`: it
could not be scored; `ungraded`: nobody was asked whether it is right. The last two are in no rate."""


class AnswerKey(NamedTuple):
    """What pairs an answer with that of another model."""

    key: str
    sample: int


@dataclass(frozen=True, slots=True)
class Answerer:
    """Which model answered: its name for people, and a fingerprint of what it is."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One answer. `prompt` is as a person reads it (before any chat template), `context` the source that the answer is
    to be held against, where the data has one; `columns` are the row's other values, as JSON values.
    """

    key: str
    sample: int
    source: str
    prompt: str
    answer: str
    outcome: Outcome
    reference: str | None = None
    context: str | None = None
    extracted: str | None = None  # what the rule found in the answer
    score: float | None = None  # None where it could not be scored
    reference_logprob: float | None = None  # sum over the reference's tokens, after the prompt; None: not asked for
    reference_tokens: int = 0
    tokens: int = 0  # of the answer
    finish: str = "stop"
    notes: Mapping[str, str] = field(default_factory=dict)  # words of the scorer, such as a judge's verdict
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> AnswerKey:
        return AnswerKey(self.key, self.sample)


_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("sample", pa.int32()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("outcome", pa.string()),
        ("reference", pa.string()),
        ("context", pa.string()),
        ("extracted", pa.string()),
        ("score", pa.float64()),
        ("reference_logprob", pa.float64()),
        ("reference_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("finish", pa.string()),
        ("notes", pa.map_(pa.string(), pa.string())),
        ("columns", pa.string()),  # JSON
    ]
)
assert _SCHEMA.names == [each.name for each in fields(AnswerRow)]
_ANSWERER = b"answerer"


def content_keys(contents: Iterable[tuple[str, str | None, str | None]]) -> list[str]:
    """A key for each (prompt, reference, context), the same wherever the row stands. Equal rows are told apart by how
    many came before.
    """
    seen: Counter[str] = Counter()
    return [content_id(content, seen) for content in contents]


def write_answers(folder: Path, answerer: Answerer, rows: Sequence[AnswerRow]) -> Path:
    """Write `answers.parquet`; the file is there completely or not at all. Raises DataError for a column value that is
    not JSON.
    """
    plain = []
    for row in rows:
        try:
            columns = json.dumps(row.columns, ensure_ascii=False)
        except TypeError as error:
            raise DataError(f"a column of row {row.key} is no JSON value ({error}): leave the column out.") from None
        plain.append({**asdict(replace(row, columns={})), "notes": list(row.notes.items()), "columns": columns})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ANSWERS
    table = pa.Table.from_pylist(plain, schema=_SCHEMA)
    table = table.replace_schema_metadata({_ANSWERER: json.dumps(asdict(answerer)).encode()})
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)
    sync_folder(folder)
    return path


def read_answers(folder: Path) -> tuple[Answerer, list[AnswerRow]]:
    """What `write_answers` wrote (`folder`, or the file itself). Raises DataError where there is no such table."""
    path = folder / ANSWERS if folder.is_dir() else folder
    if not path.is_file():
        raise DataError(f"{path} does not exist: give a folder that `openrlhf-ext eval` wrote.")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as answers ({error}): give a folder that eval wrote.") from None
    told = (table.schema.metadata or {}).get(_ANSWERER)
    if told is None or any(name not in table.column_names for name in _SCHEMA.names):
        raise DataError(f"{path} is no table of answers: give a folder that `openrlhf-ext eval` wrote.")
    rows = [
        AnswerRow(**{**row, "notes": dict(row["notes"]), "columns": json.loads(row["columns"])})
        for row in table.select(_SCHEMA.names).to_pylist()
    ]
    return Answerer(**json.loads(told)), rows
