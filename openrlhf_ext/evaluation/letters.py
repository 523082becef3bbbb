"""The letter of a multiple choice in an answer: at its beginning, or where it says what the answer is.

A letter counts only as a choice by itself. "A patient with ..." begins with an article, "B12" and "C-reactive" with a
word, "E. coli" with a genus; "A or B" and "A, B" name two; "the answer is not B" names none.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

LETTERS = "ABCDEFGH"
WEAK = "AI"
"""Letters that are words of English too: with more of a sentence behind them they are no choice."""


class _Patterns(NamedTuple):
    beginning: re.Pattern[str]
    statement: re.Pattern[str]


def lettered(text: str, letters: str = LETTERS) -> str | None:
    """The letter (upper case), or None where none is plainly the answer.

    The letter with which the text begins ("B", "(b) ...", "B. Aspirin"); else that of the last statement ("Answer: B",
    "the correct option is (B)", "B is the right answer", "\\boxed{B}").
    """
    patterns = _patterns(letters)
    text = text.strip()
    found = patterns.beginning.match(text)
    if found is None:
        for found in patterns.statement.finditer(text):  # noqa: B007 (the last one)
            pass
    return None if found is None else next(group for group in found.groups() if group).upper()


def letter_of(label: str, letters: str = LETTERS) -> str:
    """The letter of a label such as `B`, `b` or `(B)`. Raises ValueError for any other."""
    letter = label.strip().strip("()[].:").upper()
    if len(letter) != 1 or letter not in letters:
        raise ValueError(f"{label!r} is none of the letters {letters}")
    return letter


@lru_cache
def _patterns(letters: str) -> _Patterns:
    any_case = f"(?i:[{letters}])"
    strong = "".join(letter for letter in letters if letter not in WEAK)
    # Bounded, for two of them in a row would try all ways to share a long run of spaces.
    space, gap = r"\s{0,3}", r"\s{1,3}"
    opening, closing = r"[\s\"'`*_(\[{<]{0,8}", r"[\"'`*_)\]}>]{0,8}"
    # A period before a small letter is of an abbreviation (E. coli).
    period = r"\.(?!\w)(?!\s(?-i:[a-z]))"
    closed = rf"(?={closing}(?:{space}\Z|{space}\n|[)\]:]|{period}|[,;!?](?!\w)|\s[-–—]\s))"
    # Nor is it one of several, or one that is said to be wrong.
    joined = rf"(?:[,/&;]|and\b|or\b){space}(?:and\s|or\s)?{opening}"
    another = rf"(?!{closing}{space}{joined}(?-i:[{letters}])(?![\w'’-]))"
    wrong = rf"(?:not{gap}(?:correct|right|the\b)|wrong|incorrect|excluded|ruled{gap}out)\b"
    denied = rf"(?!\W{{0,8}}(?:(?:is|was){gap}(?:not|never)\b|(?:(?:is|was){gap})?{wrong}))"
    whole = rf"{closed}{another}{denied}"
    within = rf"(?![\w'’-])(?!\.\s?(?-i:[a-z])){another}{denied}"
    because = rf"(?={gap}(?:because|since|as|for|due)\b){another}"
    choice = rf"({any_case}{whole}|(?-i:[{strong}]){within}|(?-i:[{letters}]){because})"
    is_ = (
        rf"(?:{gap}(?:is|was|(?:would|should|must){gap}be))?(?:{gap}(?:clearly|definitely|(?:most{gap})?likely|thus))?"
    )
    said = rf"{is_}{space}[:=]?{opening}"
    answer = rf"(?<!incorrect\s)(?<!wrong\s)(?<!not\sthe\s)(?<!not\san\s)\banswer(?:{gap}(?:choice|option))?"
    best = r"(?:correct|right|best)"
    statement = "|".join(
        (
            rf"{answer}{said}(?:(?:option|choice){gap}{opening})?{choice}",
            rf"\b(?:{best}|final){gap}(?:option|choice|letter){said}{choice}",
            rf"(?<![\w'’-])({any_case}){closing}{gap}is{gap}(?:the{gap})?{best}\b(?!{gap}(?:to|if|for)\b)",
            rf"\\boxed{space}\{{{space}(?:\\text(?:bf)?{space}\{{)?{space}\(?({any_case})\)?{space}\}}",
        )
    )
    return _Patterns(re.compile(rf"{opening}({any_case}{whole})"), re.compile(statement, re.IGNORECASE))
