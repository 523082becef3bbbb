"""Another's text as data: cut to a length, without anything that acts, between marks that it cannot contain."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from functools import lru_cache

TAG = "data"
KEY_BYTES = 4
MANY_PASSES = 8

# The control tokens of chat formats (<|...|>, <｜...｜>, <s>, <<SYS>>, [INST], <start_of_turn>, ...) and our own tag.
MARKUP = re.compile(
    r"""<(?=[|｜]) | (?<=\S)[|｜](?=>) | <(?=/?s>) | <(?=</?SYS>>)
    | <(?=/?(?:(?:start|begin|end)_of_\w+|bos|eos|pad|unk|mask|sep|cls|im_start|im_end|im_sep
      |system|user|assistant|human|data|bot)\b[^<>\n]{0,80}>)
    | \[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYS)\])""",
    re.VERBOSE | re.IGNORECASE,
)
UNSEEN_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
# Characters that nobody sees: controls but for tab and line break, direction overrides, zero-width, tag characters,
# variation selectors' supplement, lone surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
    # Joiners are part of some scripts and of emoji; between plain letters they only hide something.
    "|(?<=[!-~])[\u200c\u200d]|[\u200c\u200d](?=[!-~])"
)


def shorten(text: str, limit: int) -> tuple[str, int]:
    """At most `limit` characters of `text`, its beginning and its end, and how many were left out between them."""
    left_out = len(text) - limit
    if left_out <= 0:
        return text, 0
    head = (limit + 1) // 2
    tail = text[len(text) - (limit - head) :]
    return f"{text[:head]}\n[{left_out} characters are left out here]\n{tail}", left_out


def disarm(text: str, special_tokens: tuple[str, ...] = ()) -> tuple[str, int]:
    """`text` without unseen characters, with a space inside whatever a chat format or a tokenizer would act on.

    `<|im_end|>` becomes `< |im_end| >`. Returns the number of places that were changed as well.
    """
    unseen = UNSEEN_ASCII if text.isascii() else UNSEEN
    plain, changed = unseen.subn("", text.replace("\r\n", "\n").replace("\r", "\n"))
    special = _pattern(special_tokens)
    for _ in range(MANY_PASSES):
        plain, count = MARKUP.subn(_apart, plain)
        if special is not None:
            plain, more = special.subn(_apart, plain)
            count += more
        if not count:
            break
        changed += count
    else:  # each break made another token: a special token with spaces in it
        assert special is not None, "the general forms end after a few passes"
        plain, more = special.subn("?", plain)
        changed += more
    return plain, changed


@lru_cache(maxsize=8)
def _pattern(special_tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    tokens = sorted({token for token in special_tokens if token.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _apart(match: re.Match[str]) -> str:
    token = match.group()
    if token in ("<", "[", "|", "｜"):  # MARKUP looks ahead: the rest follows
        return token + " "
    if len(token) == 1:
        return f"(U+{ord(token):04X})"
    return f"{token[0]} {token[1:]}"


class Fence:
    """Puts texts between `<data KEY>` and `</data KEY>`; KEY comes from the text and occurs in none of the case's.

    It depends on nothing else, so that the same text has the same fence among other texts: siblings share the
    beginning of their prompts. `changed` counts what was disarmed.
    """

    def __init__(self, texts: Sequence[str], special_tokens: tuple[str, ...] = ()) -> None:
        """`texts` are all of the case, as they came."""
        self._all = "\n".join(texts).casefold()
        self._special = special_tokens
        self.changed = 0

    def __call__(self, text: str) -> str:
        plain, changed = disarm(text, self._special)
        self.changed += changed
        key = self._key(plain)
        gap = "\n" if "\n" in plain or len(plain) > 80 else ""
        return f"<{TAG} {key}>{gap}{plain}{gap}</{TAG} {key}>"

    def _key(self, text: str) -> str:
        for attempt in itertools.count():
            digest = hashlib.blake2b(f"{attempt}\n{text}".encode(), digest_size=KEY_BYTES).hexdigest()
            if digest not in self._all and digest not in text.casefold():
                return digest
        raise AssertionError("count() ends never")
