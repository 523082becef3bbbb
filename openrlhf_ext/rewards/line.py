"""One model and many who ask at the same time: their texts wait in one line and are scored together.

A reward model scores texts; what a judge is asked (prompt, response, label) counts as a text here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from openrlhf_ext.rewards.model import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 256  # enough that neighbours in length are found among them
SAID_EVERY_S = 10.0


class Counted(Protocol):
    """What became of a text."""

    @property
    def tokens(self) -> int:
        """How many the model read for it."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A text's score, whether its beginning was too much for the model, and how many tokens the model read."""

    score: float
    truncated: bool
    tokens: int


class TextScorer:
    """Texts as the model's own tokens, at their last `max_tokens`; a text without any token is an EOS."""

    def __init__(self, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self._scorer = scorer
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> list[Scored]:
        """Special tokens are those that a text spells itself: a chat that was rendered has them all."""
        # verbose: else it warns of texts that are too long for the model, and those are cut here
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        rows = [ids or [self._tokenizer.eos_token_id] for ids in found]
        kept = [ids[-self._max_tokens :] for ids in rows]
        scores = self._scorer.scores(kept)
        return [
            Scored(score, truncated=len(read) < len(ids), tokens=len(read))
            for score, read, ids in zip(scores, kept, rows, strict=True)
        ]


@dataclass(slots=True, eq=False)
class _Request:
    texts: Sequence[Any]
    answer: asyncio.Future[list[Any]]
    scored: list[Any] = field(default_factory=list)


class Line:
    """Whenever the model is free, those who wait get an equal share of its next `TEXTS_AT_ONCE` texts.

    So a small request does not wait for the whole of a large one, and requests of one text each are scored together.
    `say` is told at most every `SAID_EVERY_S` seconds what was done.
    """

    def __init__(self, score: Callable[[Sequence[Any]], Sequence[Counted]], say: Callable[[str], None]) -> None:
        self.requests = 0  # answered, and their texts
        self.texts = 0
        self._score = score
        self._say = say
        self._waiting: list[_Request] = []
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._round: Future[Sequence[Any]] | None = None
        self._pace = _Pace(time.monotonic())

    @property
    def waiting(self) -> int:
        """Texts that have no score yet."""
        return sum(len(request.texts) - len(request.scored) for request in self._waiting if not request.answer.done())

    @property
    def busy(self) -> bool:
        """Whether the model computes, even after `work` was cancelled: nobody can interrupt it."""
        return self._round is not None and not self._round.done()

    async def ask(self, texts: Sequence[Any]) -> list[Any]:
        """Raises what the scoring raised. Who is cancelled leaves the line."""
        if not texts:
            return []
        request = _Request(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._some.set()
        return await request.answer

    async def work(self) -> None:
        """Score until it is cancelled."""
        while True:
            await self._some.wait()
            self._waiting = [request for request in self._waiting if not request.answer.done()]
            if self._waiting:
                await self._score_some()
            else:
                self._some.clear()

    async def _score_some(self) -> None:
        shares = self._shares()
        texts = [text for _, share in shares for text in share]
        start = time.monotonic()
        self._round = self._thread.submit(self._score, texts)
        try:
            scored = await asyncio.wrap_future(self._round)
        except Exception as error:  # for those who asked to handle
            for request, _ in shares:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        done = 0
        for request, share in shares:
            request.scored += scored[done : done + len(share)]
            done += len(share)
            if len(request.scored) == len(request.texts) and not request.answer.done():
                request.answer.set_result(request.scored)
                self.requests += 1
                self.texts += len(request.texts)
        self._pace.add(scored, time.monotonic() - start)
        if line := self._pace.line(self.waiting):
            self._say(line)

    def _shares(self) -> list[tuple[_Request, Sequence[Any]]]:
        """The texts to be scored next, by request. What a small request leaves of its share goes to those behind it."""
        shares: list[tuple[_Request, Sequence[Any]]] = []
        room = TEXTS_AT_ONCE
        for place, request in enumerate(self._waiting[:TEXTS_AT_ONCE]):
            share = max(room // (min(len(self._waiting), TEXTS_AT_ONCE) - place), 1)
            texts = request.texts[len(request.scored) : len(request.scored) + share]
            shares.append((request, texts))
            room -= len(texts)
        return shares


@dataclass(slots=True)
class _Pace:
    """What was done since it was last said."""

    said: float
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, scored: Sequence[Counted], seconds: float) -> None:
        self.texts += len(scored)
        self.tokens += sum(each.tokens for each in scored)
        self.seconds += seconds

    def line(self, waiting: int) -> str | None:
        """A line where one is due, and a new start."""
        now = time.monotonic()
        if now - self.said < SAID_EVERY_S:
            return None
        pace = self.tokens / max(self.seconds, 1e-9)
        line = f"scored {self.texts} texts, {pace:.0f} tokens a second; {waiting} are waiting."
        self.said, self.texts, self.tokens, self.seconds = now, 0, 0, 0.0
        return line
