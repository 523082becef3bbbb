"""What a reward source may answer, and how it is read. Standard library only: the child reads with it too.

OpenRLHF 0.11.2 documents a dict `{"rewards", "scores", "extra_logs"}`; a bare tensor, array or list of
numbers is the rewards alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["exception", "timeout", "not_finite", "wrong_length", "wrong_type", "crashed"]

EXPECTED_SIGNATURE = "reward_func(queries: list[str], prompts: list[str], labels: list, **kwargs)"
EXPECTED_RETURN = (
    "{'rewards': one number per query, 'scores': one number per query (optional), 'extra_logs': {name: a number "
    "or one per query} (optional)}, or the rewards alone as a tensor or a list"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A source's answer for a batch of n samples: n rewards, n scores where it gives any, logs of n each.

    `notes` are n texts to be kept with the rollouts, where the source has words for them. `turns` say for each sample
    which parts of its reward fell at which token, as in `Score.turns`, where the source knows.
    """

    rewards: list[float]
    scores: list[float] | None = None
    logs: Mapping[str, list[float]] = field(default_factory=dict)
    notes: list[str] | None = None
    turns: list[tuple[tuple[int, float], ...]] | None = None

    def part(self, start: int, stop: int) -> Answer:
        """Of the samples from `start` to before `stop`."""
        return Answer(
            self.rewards[start:stop],
            None if self.scores is None else self.scores[start:stop],
            {name: log[start:stop] for name, log in self.logs.items()},
            None if self.notes is None else self.notes[start:stop],
            None if self.turns is None else self.turns[start:stop],
        )


class AnswerError(Exception):
    """An answer that cannot be used, or none; `reason` is what it is counted under.

    `answer` is there where only some rows have none: the rewards of those are not finite. `final` says that asking
    for the same rows again is no use, or was tried by the source itself.
    """

    def __init__(self, reason: Reason, detail: str, answer: Answer | None = None, *, final: bool = False) -> None:
        super().__init__(reason, detail, answer)
        self.reason: Reason = reason
        self.detail = detail
        self.answer = answer
        self.final = final


def read_answer(value: Any, n: int) -> Answer:
    """Read what a reward function returned, or a server sent, for n samples.

    Raises AnswerError: wrong_type, wrong_length. Rewards that are not finite are for the caller to
    judge, for they concern their own samples only.
    """
    if not isinstance(value, Mapping):
        return Answer(_numbers(value, n, "the answer"))
    if "rewards" not in value:
        raise AnswerError("wrong_type", f"a dict without 'rewards' (its keys: {', '.join(map(str, value)) or 'none'})")
    scores = value.get("scores")
    logs = value.get("extra_logs") or {}
    if not isinstance(logs, Mapping):
        raise AnswerError("wrong_type", f"'extra_logs' is {_describe(logs)}, not a dict")
    return Answer(
        _numbers(value["rewards"], n, "'rewards'"),
        None if scores is None else _numbers(scores, n, "'scores'"),
        {str(name): _numbers(log, n, f"extra_logs[{name!r}]", one_for_all=True) for name, log in logs.items()},
        _notes(value.get("notes"), n),
    )


def bad_positions(answer: Answer) -> list[int]:
    """The samples whose reward or score is not finite."""
    columns = [answer.rewards] + ([answer.scores] if answer.scores is not None else [])
    return [i for i, row in enumerate(zip(*columns, strict=True)) if not all(map(math.isfinite, row))]


def _notes(value: Any, n: int) -> list[str] | None:
    """OpenRLHF knows no notes: what another means by the word is none of ours."""
    if not isinstance(value, list) or len(value) != n or not all(isinstance(note, str) for note in value):
        return None
    return value


def _numbers(value: Any, n: int, what: str, *, one_for_all: bool = False) -> list[float]:
    plain = value.tolist() if hasattr(value, "tolist") else value  # torch, numpy, pandas, jax
    if one_for_all and isinstance(plain, (int, float)):
        return [float(plain)] * n
    if isinstance(plain, (str, bytes, Mapping)) or not isinstance(plain, Sequence):
        raise AnswerError("wrong_type", f"{what} is {_describe(value)}, not {n} numbers")
    if len(plain) != n:
        raise AnswerError("wrong_length", f"{what} has {len(plain)} numbers for {n} queries")
    numbers = []
    for index, item in enumerate(plain):
        item = item.tolist() if hasattr(item, "tolist") else item
        if not isinstance(item, (int, float)):
            raise AnswerError("wrong_type", f"{what}[{index}] is {_describe(item)}, not a number")
        numbers.append(float(item))
    return numbers


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    if shape is not None:
        return f"{name} of shape {tuple(shape)}"
    if value is None:
        return "None"
    text = repr(value)
    return f"{name} {text if len(text) <= 60 else text[:57] + '...'}"
