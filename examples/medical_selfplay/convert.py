"""MEDEC's CSV to rows of the game: every note with an error gives two, the wrong note and the corrected one.

    python examples/medical_selfplay/convert.py MEDEC.csv data/medical_selfplay/train.jsonl

Half of the rows are `vanilla` games, in which the assessor gets the note as it is, half are `adversarial`, in which the
attacker rewrites it first; a note whose harmful row is vanilla has an adversarial safe row, and the next one the
reverse. The 319 notes with an error of the MS validation set give 638 rows, 160 or 159 of each of the four kinds.

MEDEC: Ben Abacha et al. 2025, "MEDEC: A Benchmark for Medical Error Detection and Correction in Clinical
Notes", Findings of ACL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "medec"))
from notes import Note, convert, with_error

COLUMNS = ("Text ID", "Text", "Error Flag", "Error Type", "Error Sentence", "Corrected Sentence", "Corrected Text")


def rows_of(notes: Iterable[Note]) -> Iterator[dict[str, str]]:
    """Two rows for every note whose error flag is 1; notes without an error are left out.

    `prompt` is the note, `label` what it truly is; `error` and `correction` are the sentence that makes the difference,
    in both rows.
    """
    for number, note in enumerate(with_error(notes)):
        kinds = (("Harmful", "Text"), ("Safe", "Corrected Text"))
        for (label, column), game in zip(kinds, games(number), strict=True):
            yield {
                "prompt": note[column].strip(),
                "label": label,
                "game": game,
                "error_type": note["Error Type"],
                "error": note["Error Sentence"].strip(),
                "correction": note["Corrected Sentence"].strip(),
                "note_id": note["Text ID"],
            }


def games(number: int) -> tuple[str, str]:
    """Those of the harmful and of the safe row of a note."""
    return ("vanilla", "adversarial") if number % 2 == 0 else ("adversarial", "vanilla")


def main(argv: list[str]) -> int:
    return convert(argv, COLUMNS, rows_of)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
