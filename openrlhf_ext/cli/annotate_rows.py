"""Rows with their subjects on disk: which are there, by whom they were annotated, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.data.tables import Row, content_id
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.annotation import Annotation
from openrlhf_ext.track.files import write_atomically
from openrlhf_ext.track.lines import GrowingLines


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of what is added to a row."""

    subjects: str

    @property
    def primary(self) -> str:
        return f"{self.subjects}_primary"

    @property
    def reason(self) -> str:
        return f"{self.subjects}_reason"

    @property
    def repairs(self) -> str:
        return f"{self.subjects}_repairs"

    @property
    def all(self) -> tuple[str, ...]:
        return self.subjects, self.primary, self.reason, self.repairs

    def added(self, row: Row, annotation: Annotation) -> dict[str, Any]:
        values = (list(annotation.subjects), annotation.primary, annotation.reason, list(annotation.repairs))
        return {**row.values, **dict(zip(self.all, values, strict=True))}


class AnnotatedFile:
    """`OUTPUT.jsonl`, and beside it `OUTPUT.about.json`, which says by whom and by what its rows were annotated.

    Rows are known by their content, so that a file holds each row of the data once, wherever it stands there.
    """

    def __init__(self, path: Path, columns: Columns, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
        """Raises DataError for a file of other rows, another judge or other subjects, or one that is no such file; it
        is left as it is. ResourceError for one that cannot be written to.
        """
        self._path, self._columns = path, columns
        self._about_path = path.with_suffix(".about.json")
        self._require_own(about)
        self._lines = GrowingLines(path)
        try:
            self._known = dict(zip(_keys(row.values for row in rows), rows, strict=True))
            self.rows: dict[str, Mapping[str, Any]] = self._there()
            write_atomically(self._about_path, _json(about))
        except BaseException:
            self._lines.close()
            raise

    @property
    def torn(self) -> bool:
        """Whether a line that a kill left without its end was cut off."""
        return self._lines.torn

    def missing(self) -> list[tuple[str, Row]]:
        """The rows without subjects, in the order of the data, with their keys."""
        return [(key, row) for key, row in self._known.items() if key not in self.rows]

    def keep(self, annotated: Sequence[tuple[str, Row, Annotation]]) -> None:
        """On return they are on the disk."""
        added = {key: self._columns.added(row, annotation) for key, row, annotation in annotated}
        self._lines.append(list(added.values()))
        self.rows.update(added)

    def describe(self, about: Mapping[str, Any]) -> None:
        write_atomically(self._about_path, _json(about))

    def close(self) -> None:
        self._lines.close()

    def _require_own(self, about: Mapping[str, Any]) -> None:
        if not self._path.exists() or not self._path.stat().st_size:
            return
        try:
            found = json.loads(self._about_path.read_text(encoding="utf-8"))
            differs = [name for name, value in about.items() if found[name] != json.loads(json.dumps(value))]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self._path} is there, and no {self._about_path.name} says that annotate wrote it: give another "
                "--annotate.output."
            ) from None
        if differs:
            name = differs[0]
            raise DataError(
                f"{self._path} was annotated with another {name} ({found[name]}; now {about[name]}): give another "
                "--annotate.output, or the same."
            )

    def _there(self) -> dict[str, Mapping[str, Any]]:
        for number, row in enumerate(self._lines.rows, start=1):
            if any(name not in row for name in self._columns.all):
                raise DataError(f"{self._path}, line {number}: it has no subjects; give another --annotate.output.")
        plain = [
            {name: value for name, value in row.items() if name not in self._columns.all} for row in self._lines.rows
        ]
        there = dict(zip(_keys(plain), self._lines.rows, strict=True))
        strange = sum(key not in self._known for key in there)
        if strange:
            raise DataError(
                f"{self._path} holds {strange} row{'s' * (strange != 1)} that the data does not have: give the same "
                "data, or another --annotate.output."
            )
        return there


def _keys(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    seen: Counter[str] = Counter()
    return [content_id(dict(row), seen) for row in rows]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
