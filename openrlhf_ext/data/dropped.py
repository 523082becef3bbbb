"""Rows that are left out: counted by reason, and listed in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openrlhf_ext.data.tables import Row
from openrlhf_ext.errors import DataError

Overlong = Literal["truncate_left", "truncate_right", "drop", "refuse"]
"""What becomes of a row that is too long (pairs are not cut at the right: that could take a whole answer)."""


class Dropped(Exception):
    """A row that is left out; its argument is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """`row` counts from 1, as the rows of error messages do."""

    source: str
    row: int
    reason: str

    @classmethod
    def of(cls, row: Row, dropped: Dropped) -> DroppedRow:
        return cls(row.source, row.index + 1, dropped.args[0])


def check_overlong(row: Row, tokens: int, limit: int, rule: Overlong) -> None:
    """Of a row that is too long: returns where it may be cut. Raises Dropped or DataError where the rule says so."""
    if rule == "refuse":
        raise DataError(
            f"{row.where} has {tokens} tokens, more than the {limit} of --data.max_len: allow more, or let "
            "--data.overlong drop or truncate the over-long rows."
        )
    if rule == "drop":
        raise Dropped("overlong")


def by_reason(dropped: Sequence[DroppedRow]) -> dict[str, int]:
    """How many of each, as `dropped_REASON`."""
    return dict(Counter(f"dropped_{row.reason}" for row in dropped))


def require_some(rows: Sequence[Row], dropped: Sequence[DroppedRow], dataset: str) -> None:
    """Raise DataError if every row was dropped."""
    if len(dropped) < len(rows):
        return
    reasons = ", ".join(f"{n} {name.removeprefix('dropped_')}" for name, n in by_reason(dropped).items())
    raise DataError(
        f"none of the {len(rows)} rows of {dataset} can be trained on ({reasons}): "
        "check the columns, the template and --data.max_len."
    )


def write_dropped(path: Path, dropped: Sequence[DroppedRow]) -> None:
    """One JSON object a line: `source`, `row` and `reason`; an empty file where no row was dropped."""
    lines = (json.dumps({"source": d.source, "row": d.row, "reason": d.reason}, ensure_ascii=False) for d in dropped)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
