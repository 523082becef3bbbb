"""What a rater says of an item, and the entries of the file that keeps it.

An entry is one JSON object: a judgement (`verdict`), or the withdrawal of one (`undo`, its id). A preference is kept by
the models' fingerprints and not as A or B, because each rater sees the two sides in an order of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypeVar, get_args

Task = Literal["hallucination", "preference"]
Kind = Literal["fabricated", "wrong_inference", "contradiction", "unsupported_detail"]
Reason = Literal["accurate", "complete", "clear", "concise", "safe"]
Side = Literal["A", "B", "tie"]

KINDS: tuple[Kind, ...] = get_args(Kind)
REASONS: tuple[Reason, ...] = get_args(Reason)
LONGEST_NOTE = 10_000  # characters

Span = tuple[int, int]
"""Characters (Unicode code points) of an answer, from the first to before the last."""


@dataclass(frozen=True, slots=True)
class Hallucination:
    """Whether there is one, of which kind, and where. Raises ValueError for a kind or passages without one."""

    present: bool
    kind: Kind | None = None
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if self.present != (self.kind is not None):
            raise ValueError("a hallucination has a kind, and nothing else has one")
        if self.spans and not self.present:
            raise ValueError("passages are marked where there is a hallucination")
        ends = [place for span in self.spans for place in span]
        if ends != sorted(ends) or any(start >= end for start, end in self.spans) or min(ends, default=0) < 0:
            raise ValueError("passages are in order, none is empty, and none overlaps another")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of two sides is better as the rater sees them, and why."""

    side: Side
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """A choice with the models known: the fingerprint of the better one (None: a tie), and of the one shown as A."""

    preferred: str | None
    first: str
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """`id` is drawn by whoever sends it, so that sending it twice is the same as once.

    `seconds`: as long was the item shown.
    """

    id: str
    rater: str
    item: str
    verdict: Hallucination | Preference
    note: str = ""
    seconds: float | None = None
    at: str = ""


@dataclass(frozen=True, slots=True)
class Undo:
    """The judgement `of` is withdrawn; what the rater had said of its item before holds again."""

    id: str
    rater: str
    of: str
    at: str = ""


Entry = Judgement | Undo


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def entry_to_json(entry: Entry) -> dict[str, Any]:
    value = asdict(entry)
    if isinstance(entry, Undo):
        value["undo"] = value.pop("of")
    return value


def entry_of(value: Any) -> Entry:
    """The inverse of `entry_to_json`. Raises ValueError, whose text says what is wrong."""
    value = _object(value, "an entry")
    who = {name: _text(value, name) for name in ("id", "rater", "at")}
    if "undo" in value:
        return Undo(of=_text(value, "undo"), **who)
    said = _object(value.get("verdict"), "the verdict")
    verdict = hallucination_of(said) if "present" in said else _preference_of(said)
    return Judgement(item=_text(value, "item"), verdict=verdict, note=note_of(value), seconds=seconds_of(value), **who)


def hallucination_of(value: Mapping[str, Any]) -> Hallucination:
    """Raises ValueError."""
    if not isinstance(value.get("present"), bool):
        raise ValueError("'present' must be true or false")
    kind = value.get("kind")
    spans = value.get("spans", [])
    if not isinstance(spans, list) or not all(_is_span(span) for span in spans):
        raise ValueError("'spans' must be pairs of whole numbers")
    known = None if kind is None else _one_of(kind, KINDS, "kind")
    return Hallucination(value["present"], known, tuple((start, end) for start, end in spans))


def choice_of(value: Mapping[str, Any]) -> Choice:
    """Raises ValueError."""
    return Choice(_one_of(value.get("side"), get_args(Side), "side"), _reasons(value))


def note_of(value: Mapping[str, Any]) -> str:
    """Raises ValueError for what is no text, or too long."""
    note = value.get("note", "")
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise ValueError(f"'note' must be a text of at most {LONGEST_NOTE} characters")
    return note.encode("utf-8", "replace").decode()  # half of a surrogate pair is no character


def seconds_of(value: Mapping[str, Any]) -> float | None:
    """Raises ValueError."""
    seconds = value.get("seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise ValueError("'seconds' must be a number from 0 on")
    return round(float(seconds), 1)


def _preference_of(value: Mapping[str, Any]) -> Preference:
    preferred = value.get("preferred")
    return Preference(None if preferred is None else _text(value, "preferred"), _text(value, "first"), _reasons(value))


def _reasons(value: Mapping[str, Any]) -> tuple[Reason, ...]:
    reasons = value.get("reasons", [])
    if not isinstance(reasons, list):
        raise ValueError("'reasons' must be a list")
    named = {_one_of(reason, REASONS, "reasons") for reason in reasons}
    return tuple(reason for reason in REASONS if reason in named)


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(place) is int for place in value)


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object")
    return value


def _text(value: Mapping[str, Any], name: str) -> str:
    if not isinstance(value.get(name), str):
        raise ValueError(f"{name!r} must be a text")
    return value[name]


Word = TypeVar("Word", bound=str)


def _one_of(value: Any, words: Sequence[Word], name: str) -> Word:
    for word in words:
        if value == word:
            return word
    raise ValueError(f"{name!r} must be one of {', '.join(words)}")
