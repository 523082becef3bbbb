"""Passages of an answer, marked by words with a caret that the keyboard moves (the page has its own in marking.js)."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

from openrlhf_ext.assess.verdicts import Span

# A word with the punctuation about it; of scripts that write no spaces, a character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
SENTENCE_END = re.compile(r"[.!?。！？]\W?$")


class Marks:
    """`spans` are the marked passages, in order and apart; `active` says whether the caret is shown."""

    def __init__(self, text: str, spans: Sequence[Span] = ()) -> None:
        self.spans: list[Span] = list(spans)
        self.active = False
        self._words: list[Span] = [match.span() for match in WORD.finditer(text)]
        gaps = [text[end:start] for (_, end), (start, _) in zip(self._words, self._words[1:])]
        self._sentences = [0] + [
            number + 1
            for number, ((start, end), gap) in enumerate(zip(self._words, gaps))
            if SENTENCE_END.search(text[start:end]) or "\n" in gap
        ]
        self._caret = 0
        self._anchor: int | None = None

    @property
    def caret(self) -> Span | None:
        return self._words[self._caret] if self.active and self._words else None

    @property
    def choosing(self) -> Span | None:
        """The passage that was begun, as far as the caret."""
        if self._anchor is None:
            return None
        first, last = sorted((self._anchor, self._caret))
        return self._words[first][0], self._words[last][1]

    def enter(self) -> None:
        self.active = bool(self._words)

    def leave(self) -> None:
        self.active, self._anchor = False, None

    def move(self, words: int) -> None:
        self._caret = max(0, min(len(self._words) - 1, self._caret + words))

    def sentence(self, step: int) -> None:
        """To the beginning of the next sentence (1), or of this one and then of the one before (-1)."""
        if step > 0:
            place = bisect.bisect_right(self._sentences, self._caret)
            self._caret = self._sentences[place] if place < len(self._sentences) else len(self._words) - 1
        else:
            self._caret = self._sentences[max(0, bisect.bisect_left(self._sentences, self._caret) - 1)]

    def begin_or_end(self) -> None:
        if self._anchor is None:
            self._anchor = self._caret
        else:
            self.finish()

    def finish(self) -> None:
        """A passage that was begun ends here; marks that it touches become one with it."""
        chosen = self.choosing
        self._anchor = None
        if chosen is None:
            return
        touching = [span for span in self.spans if span[1] >= chosen[0] and span[0] <= chosen[1]]
        apart = [span for span in self.spans if span not in touching]
        merged = [*touching, chosen]
        self.spans = sorted([*apart, (min(start for start, _ in merged), max(end for _, end in merged))])

    def remove(self) -> None:
        """The mark at the caret."""
        if self._words:
            place = self._words[self._caret][0]
            self.spans = [span for span in self.spans if not span[0] <= place < span[1]]
