"""Two dialogues that begin alike, and the turn in which they are compared.

Raw texts are in hh-rlhf's form (Bai et al. 2022, arXiv:2204.05862): "\\n\\nHuman:" or "\\n\\nAssistant:" before
every turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openrlhf_ext.data.dropped import Dropped
from openrlhf_ext.data.tables import Row
from openrlhf_ext.errors import DataError

MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """`said` is the turn's text as it stands after its mark, `before` all of the dialogue up to there."""

    role: str
    said: str
    before: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turn) and (self.role, self.said.strip()) == (other.role, other.said.strip())


def turns_of(text: str, row: Row, column: str) -> list[Turn]:
    """The turns of a raw dialogue; what stands before the first mark is the system's.

    Raises DataError for a text without turns, Dropped for one that does not end with the assistant's.
    """
    marks = list(MARK.finditer(text))
    if not marks:
        raise DataError(
            f"{row.where}: column {column!r} is a text without '\\n\\nHuman:' and '\\n\\nAssistant:' turns, so its "
            "answer cannot be told from its prompt: name the prompt's column with --data.prompt_key."
        )
    turns = [Turn("system", text[: marks[0].start()], "")] if text[: marks[0].start()].strip() else []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns += [Turn(ROLES[m[1]], text[m.end() : end], text[: m.end()]) for m, end in zip(marks, ends, strict=True)]
    if turns[-1].role != "assistant":
        raise Dropped("no_response")
    return turns


def said_by(turn: Turn) -> dict[str, Any]:
    """The turn as a message."""
    return {"role": turn.role, "content": turn.said.strip()}


def asked_by(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns as the messages of a prompt. Turns of one speaker in a row are one message, because chat templates
    want speakers to alternate; for the same reason a prompt that ends with the assistant raises Dropped."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += f"\n\n{turn.said.strip()}"
        else:
            messages.append(said_by(turn))
    if messages and messages[-1]["role"] == "assistant":
        raise Dropped("no_question")
    return messages


def compared_turn(
    chosen: Sequence[Any],
    rejected: Sequence[Any],
    *,
    row: Row,
    rule: Literal["drop", "cut", "refuse"],
    counts: Counter[str],
) -> int:
    """The index of the turn in which the two differ, all before being the same: the last one of both.

    Where they differ earlier the rule decides: the row is dropped, is an error, or is cut after that turn if it
    is the assistant's in both (and counted as cut_to_first_difference). Raises Dropped for equal dialogues.
    """
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(chosen) == len(rejected):
        raise Dropped("identical")
    if common == len(chosen) - 1 == len(rejected) - 1:
        return common
    if rule == "refuse":
        raise DataError(
            f"{row.where}: the two dialogues differ before their last turns (in turn {common + 1} of {len(chosen)} "
            f"and {len(rejected)}), so the answers are not to one prompt: leave the row out, or choose a rule for it."
        )
    if rule == "cut" and all(
        common < len(turns) and _role(turns[common]) == "assistant" for turns in (chosen, rejected)
    ):
        counts["cut_to_first_difference"] += 1
        return common
    raise Dropped("differs_earlier")


def _role(turn: Any) -> str:
    return turn.role if isinstance(turn, Turn) else turn["role"]
