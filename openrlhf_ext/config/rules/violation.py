"""What breaks a rule, and the words that several rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.config.fields import get

Explicit = frozenset[str]


@dataclass(frozen=True, slots=True)
class Violation:
    """A flag, the value it was given, and what is wrong or what to change.

    `plannable`: it keeps the command from starting, and a plan can be made all the same.
    """

    flag: str
    value: Any
    remedy: str
    plannable: bool = False

    def __str__(self) -> str:
        value = " ".join(map(str, self.value)) if isinstance(self.value, tuple) else self.value
        return f"{self.flag}{'' if value is None else f' {value}'}: {self.remedy}."


Rule = Callable[[Any, Explicit], Iterable[Violation]]


def required(config: Any, paths: dict[str, str], *, plannable: bool = False) -> Iterator[Violation]:
    for path, what in paths.items():
        if not get(config, path):
            yield Violation(f"--{path}", None, f"it is required: {what}", plannable)


def accumulation(batch: int, micro: int, ranks: int) -> Iterator[Violation]:
    """Accumulation is derived, so batch = micro x ranks x accumulation must have a solution."""
    unit = micro * ranks
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        choice = f"{below} or {above}" if below else f"{above}"
        yield Violation(
            "--train.batch_size",
            batch,
            f"it is no multiple of --train.micro_batch_size {micro} x {ranks} ranks; choose {choice}, "
            "or another micro-batch size",
        )


def one_for_each(flag: str, given: int, sources: int, where: str) -> Iterator[Violation]:
    if given != sources:
        yield Violation(flag, None, f"{given} values for {sources} sources in {where}; give one for each")


def count(text: str) -> int:
    return len(text.split(","))
