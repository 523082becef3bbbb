"""Questions go to the model once each: known ones are read from the cache, a reply that cannot be read is asked again.

Everything is counted.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.rewards.judge.cache import VerdictCache, cache_key
from openrlhf_ext.rewards.judge.read import NotAVerdict
from openrlhf_ext.rewards.judge.types import Counting, LanguageModel, NoReply, Question, Reply
from openrlhf_ext.types import Metric, derive_seed

RETRY_TEMPERATURE = 0.7  # at 0 another seed would change nothing
ALWAYS = (
    "asked", "cached", "repeated", "parse_failures", "retried", "prompt_tokens", "answer_tokens", "seconds",
    "no_verdict", "cut", "disarmed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """Why there is none: `parse`, or the reason of a NoReply."""

    reason: str
    detail: str


class Asking:
    """A model with a cache and counts. Threads may share it; the model answers one call at a time."""

    def __init__(self, cache: VerdictCache | None) -> None:
        self._cache = cache
        self._model: LanguageModel | None = None
        self._lock = threading.Lock()  # of the model
        self._counting = threading.Lock()
        self._counts: Counter[str] = Counter()

    def connect(self, model: LanguageModel) -> None:
        self._model = model

    def count(self, name: str, n: float = 1) -> None:
        with self._counting:
            self._counts[name] += n  # type: ignore[assignment]  # a Counter adds floats as well

    def take_report(self) -> dict[str, Metric]:
        """What was counted since the last call, under `judge/`; nothing where nothing was asked."""
        with self._counting:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return {}
        names = [*ALWAYS, *(name for name in sorted(counts) if name not in ALWAYS)]
        return {f"judge/{name}": Metric(float(counts[name]), reduction="sum") for name in names}

    def answers(self, questions: Sequence[Question], read: Callable[[str], Any]) -> list[Any]:
        """What `read` makes of each question's reply, or NoVerdict. `read` raises NotAVerdict.

        A reply that `read` refuses is asked for once more, with another seed; then it is a parse failure. Only
        replies that were read are kept in the cache.
        """
        assert self._model is not None, "a model is connected before it is asked"
        keys = [cache_key(self._model.name, question) for question in questions]
        wanted = dict(zip(keys, questions, strict=True))
        self.count("repeated", len(keys) - len(wanted))
        results = self._known(list(wanted), read)
        missing = [key for key in wanted if key not in results]
        fresh = self._ask([wanted[key] for key in missing], read)
        results.update(zip(missing, fresh, strict=True))
        refused = [key for key in missing if isinstance(results[key], NoVerdict) and results[key].reason == "parse"]
        self.count("parse_failures", len(refused))
        self.count("retried", len(refused))
        again = self._ask([_other_draw(wanted[key]) for key in refused], read)
        results.update(zip(refused, again, strict=True))
        for result in again:
            if isinstance(result, NoVerdict) and result.reason == "parse":
                self.count("parse_failures")
        self._keep({key: results[key] for key in missing})
        return [result[0] if isinstance(result := results[key], tuple) else result for key in keys]

    def _known(self, keys: list[bytes], read: Callable[[str], Any]) -> dict[bytes, Any]:
        if self._cache is None:
            return {}
        known: dict[bytes, Any] = {}
        for key, reply in self._cache.get(keys).items():
            value = _read(reply, read)
            if not isinstance(value, NoVerdict):  # a file that another wrote: asked anew
                known[key] = value
        self.count("cached", len(known))
        return known

    def _keep(self, results: dict[bytes, Any]) -> None:
        if self._cache is not None:
            errors = self._cache.errors
            self._cache.put({key: result[1] for key, result in results.items() if isinstance(result, tuple)})
            if self._cache.errors > errors:
                self.count("cache_errors", self._cache.errors - errors)

    def _ask(self, questions: Sequence[Question], read: Callable[[str], Any]) -> list[Any]:
        """(value, reply) of each question, or NoVerdict."""
        if not questions:
            return []
        assert self._model is not None
        with self._lock:
            start = time.monotonic()
            replies = self._model.reply(questions)
            seconds = time.monotonic() - start
        assert len(replies) == len(questions), "one reply for each question"
        self.count("asked", len(questions))
        self.count("seconds", seconds)
        if isinstance(self._model, Counting):
            for name, n in self._model.take_counts().items():
                self.count(name, n)
        results = []
        for reply in replies:
            if isinstance(reply, NoReply):
                self.count(f"no_reply/{reply.reason}")
                results.append(NoVerdict(reply.reason, reply.detail))
                continue
            self.count("prompt_tokens", reply.prompt_tokens)
            self.count("answer_tokens", reply.answer_tokens)
            results.append(_read(reply, read))
        return results


def _read(reply: Reply, read: Callable[[str], Any]) -> Any:
    try:
        return read(reply.text), reply
    except NotAVerdict as error:
        cut = ", cut at its longest answer" if reply.finish_reason == "length" else ""
        return NoVerdict("parse", f"{error}{cut}: {reply.text[:120]!r}")


def _other_draw(question: Question) -> Question:
    temperature = max(question.temperature, RETRY_TEMPERATURE)
    return dataclasses.replace(question, temperature=temperature, seed=derive_seed("again", question.seed))
