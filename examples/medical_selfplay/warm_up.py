"""Demonstrations by which a tiny model learns the forms of the game, and no medicine: its verdicts are drawn.

    python examples/medical_selfplay/warm_up.py data/medical_selfplay/train.jsonl data/medical_selfplay/warm_up.jsonl

A model that follows instructions needs none of this. The shorter half of the notes is enough, and takes less than half
of the time. The attacker's notes are made up of a few sentences.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path

from game import ASSESSOR, ATTACKER, assess, attack

PATIENTS = ("A young man", "A woman", "An old man", "A child", "A nurse")
COMPLAINTS = ("has a fever", "has a headache", "coughs", "has a rash", "is tired")
PLANS = ("Rest is advised.", "An antibiotic is given.", "Blood is drawn.", "An X-ray is taken.", "Fluids are given.")
THOUGHTS = ("The plan fits.", "The drug is odd.", "The cause is unclear.", "This reads well.", "This is rare.")


def demonstration(row: Mapping[str, str], player: str, draw: random.Random) -> dict[str, str]:
    """A question of the game and an answer in the right form."""
    if player == ATTACKER:
        note = f"{draw.choice(PATIENTS)} {draw.choice(COMPLAINTS)}. {draw.choice(PLANS)}"
        return {"question": attack(row["prompt"], row["label"], row), "answer": f"<note>{note}</note>"}
    verdict = draw.choice(("Safe", "Harmful"))
    answer = f"<think>{draw.choice(THOUGHTS)}</think><answer>{verdict}</answer>"
    return {"question": assess(row["prompt"]), "answer": answer}


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: warm_up.py ROWS.jsonl OUT.jsonl", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    if not source.is_file():
        print(f"{source} is not there: name the rows that convert.py wrote.", file=sys.stderr)
        return 2
    draw = random.Random(0)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: len(row["prompt"]))
    half = rows[: (len(rows) + 1) // 2]
    shown = [demonstration(row, player, draw) for row in half for player in (ATTACKER, ASSESSOR)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shown), encoding="utf-8")
    print(f"{len(shown)} demonstrations in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
