"""What a check found, and how an error becomes one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.errors import UserError

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`error`: the command would not start, or not end well. A remedy is there unless all is well."""

    area: str
    level: Level
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.level == "ok" or self.remedy, "a fault comes with its remedy"


def ok(area: str, text: str) -> Finding:
    return Finding(area, "ok", text)


def warning(area: str, text: str, remedy: str) -> Finding:
    return Finding(area, "warning", text, remedy)


def error(area: str, text: str, remedy: str) -> Finding:
    return Finding(area, "error", text, remedy)


def of_error(area: str, raised: UserError, *, level: Level = "error") -> Finding:
    """A user's error is one sentence: what is wrong and where, then the remedy (see `errors`)."""
    text, remedy = in_two(str(getattr(raised, "cause", raised)))
    return Finding(area, level, text, remedy or "mend it, and check again.")


def in_two(sentence: str) -> tuple[str, str]:
    """The sentence before and after its first semicolon or, without one, its last colon; those in brackets are part
    of what they explain."""
    depth, semicolon, colon = 0, None, None
    for place, (letter, following) in enumerate(itertools.pairwise(sentence)):
        depth += (letter in "([{") - (letter in ")]}")
        if depth > 0 or following not in " \n":
            continue
        if letter == ";" and semicolon is None:
            semicolon = place
        if letter == ":":
            colon = place
    cut = semicolon if semicolon is not None else colon
    if cut is None:
        return sentence, ""
    return sentence[:cut], sentence[cut + 1 :].strip()
