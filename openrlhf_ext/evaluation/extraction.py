"""The answer in a text, by a named rule, and whether it is the reference.

Rules are strict: what is not plainly the answer is no answer, and is counted as such. Nothing is right because the
expected text stands somewhere. All of them but `pattern` and `math` take time linear in the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from openrlhf_ext.config.evaluation import ANSWER_RULES
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.evaluation.answers import Outcome
from openrlhf_ext.evaluation.letters import LETTERS, letter_of, lettered
from openrlhf_ext.rewards.limited import Unfinished, each_in_time
from openrlhf_ext.rewards.verify import extracted, is_exactly, is_mathematically, mathematics_in

UNBOUNDED = ("pattern", "math")
"""Rules whose time no one can tell: their answers are graded in a process of its own, each with a time limit."""

MINUS, CURRENCIES = "\N{MINUS SIGN}", "$€£"
BEFORE_NUMBER = " \t\n:=*_([{\\" + CURRENCIES
"""What may stand between a mark and its number."""
# Digits with or without commas between thousands, or a fraction; no part of a word (B12, COVID-19) or of a version.
NUMBER = re.compile(
    rf"(?<![\w.])(?<![A-Za-z]-)(?:(?<![\w)])[-+])?[{CURRENCIES}]?"
    r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?(?:/\d+)?(?!\.\d)"
)


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, and whether it stood at the very end of the text: of a text that was cut it may be a part only."""

    text: str
    at_end: bool


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """`find` looks for the answer in a text, `same` says whether what it found is the label (of a list any one).

    `check` raises ValueError, with the reason, for a label that no answer could ever be the same as.
    """

    spec: str
    find: Callable[[str], Found | None]
    same: Callable[[str, Any], bool]
    check: Callable[[Any], object]

    @property
    def unbounded(self) -> bool:
        return self.spec.partition(":")[0] in UNBOUNDED


@dataclass(frozen=True, slots=True)
class Graded:
    """What a rule says of an answer. `score` is 1 for a right one and 0 for any other; None where it failed."""

    outcome: Outcome
    extracted: str | None
    score: float | None


class Case(NamedTuple):
    """An answer, its label, and whether it ended at the limit of tokens."""

    text: str
    label: Any
    cut: bool


def answer_rule(spec: str) -> AnswerRule:
    """The rule of that name. Raises ConfigError for none of `ANSWER_RULES`, or one without what its colon announces."""
    name, colon, setting = spec.partition(":")
    wants = {each.partition(":")[0]: each for each in ANSWER_RULES}.get(name)
    if wants is None:
        raise ConfigError(f"there is no rule {spec!r} for answers: give one of {', '.join(ANSWER_RULES)}.")
    if name == "first_letter":
        letters = setting or LETTERS
        if not re.fullmatch(r"[A-Z]{2,26}", letters) or len(set(letters)) < len(letters) or (colon and not setting):
            raise ConfigError(f"{spec}: behind the colon stand the choices' letters, such as first_letter:ABCDE.")
        return AnswerRule(
            spec,
            lambda text: _letter(text, letters),
            lambda answer, label: answer in {letter_of(each, letters) for each in _labels(label)},
            lambda label: [letter_of(each, letters) for each in _labels(label)],
        )
    if bool(colon) != (":" in wants) or bool(setting) != bool(colon):
        raise ConfigError(f"{spec}: the rule is written {wants}.")
    if name == "exact":
        return AnswerRule(spec, _whole, lambda answer, label: is_exactly(answer, label, None), _labels)
    if name == "tag":
        return AnswerRule(spec, lambda text: _tagged(text, setting), lambda a, b: is_exactly(a, b, None), _labels)
    if name == "math":
        return AnswerRule(spec, _mathematics, lambda answer, label: is_mathematically(answer, label, None), _labels)
    if name == "pattern":
        return _pattern_rule(spec, setting)
    return _number_rule(spec, setting or None)


def graded(rule: AnswerRule, case: Case) -> Graded:
    """Of a text that was cut, an answer at the very end may go on, and is none; a letter is whole."""
    text, label, cut = case
    found = rule.find(text)
    if found is None or (cut and found.at_end):
        return Graded("truncated" if cut else "unanswered", None, 0.0)
    right = rule.same(found.text, label)
    return Graded("right" if right else "wrong", found.text, float(right))


def graded_in_time(spec: str, cases: Sequence[Case], limit_s: float) -> list[Graded]:
    """By the rule `spec`, in forked processes: what takes longer than `limit_s` has failed."""
    if spec == "math":
        import math_verify  # noqa: F401 (once, before it is forked)
    found = each_in_time(partial(graded, answer_rule(spec)), cases, limit_s=limit_s, until=math.inf)
    return [Graded("failed", None, None) if isinstance(each, Unfinished) else each for each in found]


def _labels(label: Any) -> list[str]:
    labels = label if isinstance(label, list | tuple) else [label]
    texts = [str(each) for each in labels if each is not None]
    if not texts or not any(text.strip() for text in texts):
        raise ValueError("it is empty")
    return texts


def _whole(text: str) -> Found | None:
    return Found(text.strip(), True) if text.strip() else None


def _letter(text: str, letters: str) -> Found | None:
    letter = lettered(text, letters)
    return None if letter is None else Found(letter, False)


def _tagged(text: str, name: str) -> Found | None:
    """The content of the last pair of tags that is closed and not empty."""
    before, closing, _ = text.rpartition(f"</{name}>")
    _, opening, inside = before.rpartition(f"<{name}>")
    return Found(inside.strip(), False) if closing and opening and inside.strip() else None


def _mathematics(text: str) -> Found | None:
    found = mathematics_in(text)
    return None if found is None else Found(found, text.rstrip().endswith(found))


def _pattern_rule(spec: str, pattern: str) -> AnswerRule:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{spec}: {pattern!r} is no regular expression ({error}).") from None

    def find(text: str) -> Found | None:
        found = extracted(text, pattern)
        return None if found is None else Found(found, bool(found) and text.endswith(found))

    return AnswerRule(spec, find, lambda answer, label: is_exactly(answer, label, pattern), _labels)


def _number_rule(spec: str, mark: str | None) -> AnswerRule:
    """After the last mark, or the last number there is; of a label too, where the mark stands in it."""

    def find(text: str) -> Found | None:
        return _last_number(text) if mark is None else _number_after(text, mark)

    def number_of(label: str) -> Fraction:
        found = find(label) if mark is not None and mark in label else None
        value = _value(label if found is None else found.text)
        if value is None:
            raise ValueError(f"{label!r} is no number")
        return value

    return AnswerRule(
        spec,
        find,
        lambda answer, label: _value(answer) in [number_of(each) for each in _labels(label)],
        lambda label: [number_of(each) for each in _labels(label)],
    )


def _number_after(text: str, mark: str) -> Found | None:
    _, there, rest = text.rpartition(mark)
    rest = rest.replace(MINUS, "-").lstrip(BEFORE_NUMBER)
    match = NUMBER.match(rest) if there else None
    return None if match is None else _number(match)


def _last_number(text: str) -> Found | None:
    last = None
    for match in NUMBER.finditer(text.replace(MINUS, "-")):
        last = match
    return None if last is None else _number(last)


def _number(match: re.Match[str]) -> Found:
    return Found(re.sub(f"[{CURRENCIES}]", "", match.group()), match.end() == len(match.string.rstrip()))


def _value(number: str) -> Fraction | None:
    text = re.sub(rf"[,{CURRENCIES}\s]", "", number.replace(MINUS, "-")).rstrip("%.")
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def check_labels(rule: AnswerRule, labels: Sequence[tuple[str, Any]]) -> None:
    """(Where it stands, label). Raises DataError for the first that no answer could be the same as."""
    for where, label in labels:
        try:
            rule.check(label)
        except ValueError as error:
            raise DataError(
                f"{where}: no answer could be its reference by the rule {rule.spec} ({error}): mend the row, or give "
                "another --data.label_key or --eval.scorer."
            ) from None
