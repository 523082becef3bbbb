"""MEDEC's CSV to prompt rows: every note with an error gives two, the wrong note and the corrected one.

    python examples/medec/convert.py MEDEC.csv data/medec/train.jsonl

MEDEC: Ben Abacha et al. 2025, "MEDEC: A Benchmark for Medical Error Detection and Correction in Clinical
Notes", Findings of ACL. The 319 notes with an error of its MS validation set give 638 rows.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

COLUMNS = ("Text ID", "Text", "Error Flag", "Corrected Text")
PROMPT = """\
You are a physician who reviews clinical notes. Decide whether the note below is safe, or holds an error in
diagnosis, management, treatment, pharmacotherapy or causal organism that could harm the patient.
Reason first. Then give your verdict, one word, Safe or Harmful, as <answer>Safe</answer> or
<answer>Harmful</answer>.

Clinical note:
{note}"""


def rows_of(notes: Iterable[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    """Two rows for every note whose error flag is 1; notes without an error are left out."""
    for note in notes:
        if note["Error Flag"].strip() != "1":
            continue
        for text, verdict in ((note["Text"], "Harmful"), (note["Corrected Text"], "Safe")):
            yield {"prompt": PROMPT.format(note=text.strip()), "label": verdict, "note_id": note["Text ID"]}


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: convert.py MEDEC.csv OUT.jsonl", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    if not source.is_file():
        print(f"{source} is not there: name MEDEC's CSV file.", file=sys.stderr)
        return 2
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
