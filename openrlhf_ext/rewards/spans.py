"""Where in the tokens of an answer a piece of its text is, whatever the tokenizer made of its edges.

A tag may be spread over several tokens, share its first or last token with its neighbours, or stand beside half a
letter (tokens of byte-level vocabularies are bytes). So it is looked for in the bytes that the tokens stand for,
which decide everything: no text is tokenized again to be compared with what was sampled.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from openrlhf_ext.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "if x > 1:\n\treturn <b>Grüße</b>, 漢字 🙂  # two  spaces\n"
LONGEST_LETTER = 4
"""Bytes of UTF-8."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes that each token of a vocabulary stands for.

    Raises DataError for a tokenizer whose tokens are neither byte-level (GPT-2, Llama 3, Qwen) nor pieces with a
    fallback to bytes (Llama 2, Gemma, Mistral): what its tokens stand for depends on their neighbours.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        vocabulary = tokenizer.get_vocab()
        added = {token_id: str(token).encode() for token_id, token in tokenizer.added_tokens_decoder.items()}
        probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        for read in (_byte_level, _piece):
            self._bytes = {token_id: read(token) for token, token_id in vocabulary.items()} | added
            if self.joined(probe).lstrip() == PROBE.encode():
                return
        raise DataError(
            f"the tokens of {tokenizer.name_or_path} do not stand for bytes, so tags cannot be found in them: give "
            "models with a byte-level tokenizer or one that falls back to bytes."
        )

    def of(self, token_id: int) -> bytes:
        """Of an id without a token (the padding of an embedding): none."""
        return self._bytes.get(token_id, b"")

    def joined(self, token_ids: Sequence[int]) -> bytes:
        return b"".join(map(self.of, token_ids))


def _byte_level(token: str) -> bytes:
    letters = _byte_of_letter()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode()


def _piece(token: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _byte_of_letter() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (GPT-2, Radford et al. 2019)."""
    if not _LETTERS:
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        _LETTERS.update({chr(byte): byte for byte in printable})
        _LETTERS.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return _LETTERS


_LETTERS: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the text of some tokens: bytes before the first whole token, those tokens, and bytes after them.

    Tokens `start` to before `stop` lie within the piece. `before` and `after` are what the piece has of tokens that
    stick out of it, and of their neighbours where a letter is spread over several.
    """

    start: int
    stop: int
    before: str = ""
    after: str = ""

    @property
    def whole(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class TagSpan:
    """What stands between the tags, or what there is of it where they are not all there (`matched` False)."""

    span: Span
    matched: bool


def find_between(pieces: Sequence[bytes], open_tag: str, close_tag: str, *, opened: bool = False) -> TagSpan:
    """Between the first opening tag and the first closing tag after it. `pieces` are the bytes of the tokens.

    `opened` says that the opening tag stands before these tokens. Without a closing tag it is all after the opening
    one, without an opening tag all before the closing one, without either everything.
    """
    text, opening, closing = b"".join(pieces), open_tag.encode(), close_tag.encode()
    begin = 0 if opened else text.find(opening)
    found = begin >= 0
    first = 0 if opened or not found else begin + len(opening)
    last = text.find(closing, first)
    return TagSpan(span_of(pieces, first, last if last >= 0 else len(text)), found and last >= 0)


def span_of(pieces: Sequence[bytes], first: int, last: int) -> Span:
    """The tokens that lie within the bytes from `first` to before `last`.

    Bytes at its edges that are no UTF-8, a letter that never ends, read as U+FFFD.
    """
    text = b"".join(pieces)
    assert 0 <= first <= last <= len(text)
    ends = list(accumulate(map(len, pieces)))
    starts = [0, *ends[:-1]] if ends else []
    start, stop = bisect_left(starts, first), bisect_right(ends, last)
    if start >= stop:  # no token lies within it as a whole
        return Span(stop, stop, text[first:last].decode(errors="replace"))
    while start < stop and _within_a_letter(text, starts[start]):
        start += 1
    while start < stop and _within_a_letter(text, ends[stop - 1]):
        stop -= 1
    if start == stop:
        return Span(start, start, text[first:last].decode(errors="replace"))
    before, after = text[first : starts[start]], text[ends[stop - 1] : last]
    return Span(start, stop, before.decode(errors="replace"), after.decode(errors="replace"))


def _within_a_letter(text: bytes, place: int) -> bool:
    """Whether a letter (UTF-8, RFC 3629) begins before this byte and goes on with it."""
    for back in range(1, min(place, LONGEST_LETTER - 1) + 1):
        letter = text[place - back : place - back + LONGEST_LETTER]
        if letter[0] & 0xC0 == 0x80:
            continue
        size = 1 + (letter[0] >= 0xC0) + (letter[0] >= 0xE0) + (letter[0] >= 0xF0)
        return size > back and _is_text(letter[:size])
    return False


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True
