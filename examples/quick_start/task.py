"""The quick start's task: sort the digits of a number. One line to check, and easy to get nearly right.

The demonstrations are careless on purpose: only three of ten sort, the others give the digits back as they
stood. A model that imitates them is right about one time in three; the reward tells it which answers count.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INSTRUCTION = "Sort these digits: "
LENGTHS = (4, 6)  # digits, at least and at most
CAREFUL = 0.3  # share of the demonstrations that sort


def write_task(folder: Path, *, demonstrations: int, prompts: int, held_out: int, seed: int) -> None:
    """Write sft.jsonl, train.jsonl, held_out.jsonl and corpus.txt. No held-out number is in the other two."""
    draw = random.Random(seed)
    numbers = distinct_numbers(draw, held_out + max(demonstrations, prompts))
    held, seen = numbers[:held_out], numbers[held_out:]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "held_out.jsonl", (_question(number) for number in held))
    write_rows(folder / "train.jsonl", (_question(number) for number in seen[:prompts]))
    write_rows(folder / "sft.jsonl", (_demonstration(number, draw) for number in seen[:demonstrations]))
    (folder / "corpus.txt").write_text(f"{INSTRUCTION}\nuser\nassistant\n" * 20, encoding="utf-8")


def distinct_numbers(draw: random.Random, count: int) -> list[str]:
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        numbers["".join(draw.choices("0123456789", k=draw.randint(*LENGTHS)))] = None
    return list(numbers)


def _question(number: str) -> dict[str, str]:
    return {"question": INSTRUCTION + number, "answer": "".join(sorted(number))}


def _demonstration(number: str, draw: random.Random) -> dict[str, str]:
    answer = "".join(sorted(number)) if draw.random() < CAREFUL else number
    return {"question": INSTRUCTION + number, "answer": answer}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
