"""MEDEC's CSV to prompt rows: every note with an error gives two, the wrong note and the corrected one.

    python examples/medec/convert.py MEDEC.csv data/medec/train.jsonl

MEDEC: Ben Abacha et al. 2025, "MEDEC: A Benchmark for Medical Error Detection and Correction in Clinical
Notes", Findings of ACL. The 319 notes with an error of its MS validation set give 638 rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from notes import Note, convert, with_error

COLUMNS = ("Text ID", "Text", "Error Flag", "Corrected Text")
PROMPT = """\
You are a physician who reviews clinical notes. Decide whether the note below is safe, or holds an error in
diagnosis, management, treatment, pharmacotherapy or causal organism that could harm the patient.
Reason first. Then give your verdict, one word, Safe or Harmful, as <answer>Safe</answer> or
<answer>Harmful</answer>.

Clinical note:
{note}"""


def rows_of(notes: Iterable[Note]) -> Iterator[dict[str, str]]:
    """Two rows for every note whose error flag is 1; notes without an error are left out."""
    for note in with_error(notes):
        for text, verdict in ((note["Text"], "Harmful"), (note["Corrected Text"], "Safe")):
            yield {"prompt": PROMPT.format(note=text.strip()), "label": verdict, "note_id": note["Text ID"]}


def main(argv: list[str]) -> int:
    return convert(argv, COLUMNS, rows_of)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
