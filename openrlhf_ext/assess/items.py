"""What is judged: single answers, or the answers of two models to one prompt, each with a key that is its content."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.assess.verdicts import Task
from openrlhf_ext.data.tables import content_id
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import Answerer, AnswerRow
from openrlhf_ext.types import derive_seed


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """One model's answer. `judged`: what the table says of it (True: right, None: it has no verdict), and its score."""

    model: str  # the fingerprint
    text: str
    judged: bool | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One answer (hallucination), or two in the order of the assessment's models (preference).

    `key` is a hash of all that the rater reads and of the models, so that no other model's answer has it. `row` names
    the prompt: answers of two models to the same one have the same.
    """

    key: str
    row: str
    prompt: str
    answers: tuple[ItemAnswer, ...]
    context: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The answers of one model."""

    answerer: Answerer
    rows: Sequence[AnswerRow]


@dataclass(frozen=True, slots=True)
class Made:
    """Items, and how many are none: `identical` (pairs), `unpaired` (answers)."""

    items: tuple[Item, ...]
    left_out: Mapping[str, int]


def make_items(task: Task, tables: Sequence[Table], *, most: int | None, seed: int) -> Made:
    """Every answer of one or two tables, or every pair of two; of more than `most` those that the seed draws, the same
    prompts from both.

    Raises DataError for one table where two are needed, two of one model, and where nothing is left to judge.
    """
    prints = [table.answerer.fingerprint for table in tables]
    if len(set(prints)) < len(prints):
        raise DataError(
            f"{tables[0].answerer.name} and {tables[1].answerer.name} are the same model (fingerprint {prints[0]}): "
            "give the answers of two."
        )
    _check_texts(tables)
    if task == "preference":
        items, left_out = _pairs(tables)
    else:
        items, left_out = list(_singles(tables)), {}
    if not items:
        why = ", ".join(f"{n} {name}" for name, n in left_out.items() if n) or "no rows"
        raise DataError(f"there is nothing to judge ({why}): give tables with answers to the same prompts.")
    if most is not None and most < len(items):
        items = _drawn(items, most, seed)
    return Made(tuple(items), left_out)


def _singles(tables: Sequence[Table]) -> Iterator[Item]:
    seen: Counter[str] = Counter()
    for table in tables:
        for row in table.rows:
            yield _item(row, [_answer(table, row)], seen)


def _pairs(tables: Sequence[Table]) -> tuple[list[Item], dict[str, int]]:
    if len(tables) != 2:
        raise DataError(f"a preference is between two models, and {len(tables)} is given: name the answers of two.")
    first, second = tables
    others = {row.pair: row for row in second.rows}
    seen: Counter[str] = Counter()
    items, identical, paired = [], 0, 0
    for row in first.rows:
        other = others.get(row.pair)
        if other is None:
            continue
        paired += 1
        if row.answer.strip() == other.answer.strip():
            identical += 1
        else:
            items.append(_item(row, [_answer(first, row), _answer(second, other)], seen))
    return items, {"identical": identical, "unpaired": len(first.rows) + len(second.rows) - 2 * paired}


def _item(row: AnswerRow, answers: Sequence[ItemAnswer], seen: Counter[str]) -> Item:
    content = [row.prompt, row.context, *([answer.model, answer.text] for answer in answers)]
    return Item(content_id(content, seen), row.key, row.prompt, tuple(answers), row.context, row.reference)


def _answer(table: Table, row: AnswerRow) -> ItemAnswer:
    judged = {"right": True, "wrong": False}.get(row.outcome)
    return ItemAnswer(table.answerer.fingerprint, row.answer, judged, row.score)


def _drawn(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """Whole prompts at random until there are `most` items; the last prompt may give only a part of its answers."""
    rows = sorted({item.row for item in items})
    random.Random(derive_seed(seed, "drawn")).shuffle(rows)
    place = {row: number for number, row in enumerate(rows)}
    chosen = {item.key for item in sorted(items, key=lambda item: (place[item.row], item.key))[:most]}
    return [item for item in items if item.key in chosen]


def _check_texts(tables: Sequence[Table]) -> None:
    for table in tables:
        for row in table.rows:
            try:
                "".join(filter(None, (row.prompt, row.answer, row.context, row.reference))).encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"row {row.key} of {table.answerer.name} holds half of a surrogate pair, which is no character: "
                    "mend the text or leave the row out."
                ) from None


def item_of(value: Mapping[str, Any]) -> Item:
    """The inverse of `asdict`."""
    return Item(**{**value, "answers": tuple(ItemAnswer(**answer) for answer in value["answers"])})
