"""Whether an answer is the label: as text, or as mathematics."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import deque

AROUND = " \t\n\"'`*_$()[]{}"
AFTER = AROUND + ".,;:!?"
NUMBER = re.compile(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?")
LATEX = re.compile(r"\\[a-zA-Z]+|\^|_")
ANCHORED = re.compile(r"\$|\\boxed|\\\(|\\\[")


def extracted(text: str, pattern: str | None) -> str | None:
    """The last match of the pattern (its first group, where it has one), or the whole text without a pattern."""
    if pattern is None:
        return text
    matches = deque(re.finditer(pattern, text, re.DOTALL), maxlen=1)
    if not matches:
        return None
    last = matches[0]
    return last.group(1) if last.re.groups and last.group(1) is not None else last.group()


def wanted(label: object, pattern: str | None) -> list[str]:
    """The texts that are right: of a list any one. The pattern is looked for in them too, and need not be there."""
    labels = label if isinstance(label, (list, tuple)) else [label]
    texts = [str(each) for each in labels]
    found = [extracted(text, pattern) for text in texts]
    return [text if match is None else match for text, match in zip(texts, found, strict=True)]


def normal(text: str) -> str:
    """Compatible characters, case, spaces, quotes and closing punctuation do not count; 1,000.0 is 1000."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = text.lstrip(AROUND).rstrip(AFTER)
    number = NUMBER.fullmatch(text)
    if number and (number[2] or number[3]):
        whole = number[2].replace(",", "").lstrip("0") or "0"
        part = (number[3] or "").rstrip("0")
        sign = "-" if number[1] == "-" and (whole != "0" or part) else ""
        return f"{sign}{whole}.{part}" if part else sign + whole
    return text


def is_exactly(answer: str, label: object, pattern: str | None) -> bool:
    return normal(answer) in {normal(text) for text in wanted(label, pattern)}


def is_mathematically(answer: str, label: object, pattern: str | None) -> bool:
    """Whether math-verify finds the answer equal to the label; a label without mathematics is compared as text."""
    from math_verify import verify

    found = _parsed(answer)
    for text in wanted(label, pattern):
        gold = _parsed(text)
        if not gold:
            if normal(answer) == normal(text):
                return True
        elif found and verify(gold, found, timeout_seconds=None):
            return True
    return False


def mathematics_in(text: str) -> str | None:
    """What math-verify reads in a text, as it stands there; None where it finds nothing."""
    found = _parsed(text)
    return str(found[-1]) if found else None


def _parsed(text: str) -> list[object]:
    """What math-verify reads in a text. A formula that nothing marks as one is marked."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # time limits are ours
    if len(text) <= 200 and LATEX.search(text) and not ANCHORED.search(text):
        text = f"${text}$"
    return parse(text, parsing_timeout=None)
