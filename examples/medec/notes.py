"""MEDEC's CSV file as notes, and rows made of them: what this example's and the self-play's convert.py share."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

Note = Mapping[str, str]


def with_error(notes: Iterable[Note]) -> Iterator[Note]:
    """Those whose error flag is 1."""
    return (note for note in notes if note["Error Flag"].strip() == "1")


def convert(
    argv: Sequence[str], columns: Sequence[str], rows_of: Callable[[Iterable[Note]], Iterator[dict[str, str]]]
) -> int:
    """Write the rows of the notes as JSON lines; the exit code, 2 after a sentence on what cannot be read."""
    if len(argv) != 2:
        print("usage: convert.py MEDEC.csv OUT.jsonl", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    if not source.is_file():
        print(f"{source} is not there: name MEDEC's CSV file.", file=sys.stderr)
        return 2
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join(reader.fieldnames or ()) or "none"
            print(f"{source} has no column {', '.join(missing)}: its columns are {there}.", file=sys.stderr)
            return 2
        rows = list(rows_of(reader))
    if not rows:
        print(f"{source} has no note with Error Flag 1: nothing to convert.", file=sys.stderr)
        return 2
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {target}")
    return 0
