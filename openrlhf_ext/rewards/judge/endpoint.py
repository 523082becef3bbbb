"""A language model behind any OpenAI-compatible URL (`POST URL/chat/completions`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards.judge.breaker import Breaker
from openrlhf_ext.rewards.judge.exchange import (
    TRANSIENT,
    Failed,
    LimitRenamed,
    failure_of,
    read_completion,
    request_body,
    without_secret,
)
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply

T = TypeVar("T")
KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_WAIT_S = 60.0
PROBE_S = 60.0
TRIAL_S = 20.0  # so long the trial question is repeated
PROBE_SCHEMA = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """`url` ends where /chat/completions is put behind it (.../v1). Times in seconds; `timeout_s` is one attempt's.

    `api_key` None means the environment's OPENAI_API_KEY, where it is set.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout_s: float = 60.0
    max_retries: int = 5
    backoff_s: float = 1.0  # before the first retry; doubles
    breaker_failures: int = 8  # questions in a row that failed after all their retries
    breaker_rest_s: float = 30.0
    whose: str = "the judge's"  # in messages


class Endpoint:
    """`LanguageModel` over an endpoint. A question that gets no answer is a NoReply; the others keep theirs.

    Lost connections, time-outs, 429 and 5xx are repeated up to `max_retries` times, after the time that the server
    asks for (Retry-After, at most a minute) or a growing one. When `breaker_failures` questions in a row had no
    answer, the next fail at once for `breaker_rest_s`; then a single one tries.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        """Raises ConfigError for a URL that is none."""
        good = False
        with contextlib.suppress(httpx.InvalidURL, ValueError):  # a strange host or port
            parts = urlsplit(settings.url)
            _ = httpx.URL(settings.url), parts.port
            good = parts.scheme in ("http", "https") and bool(parts.hostname)
        if not good:
            raise ConfigError(f"{settings.whose} URL {settings.url!r} names no host: give http://HOST:PORT/v1.")
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._key = settings.api_key or os.environ.get(KEY_VARIABLE, "")
        self._whose = f"{settings.whose} endpoint"
        self._limit_name = "max_tokens"
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_rest_s)
        self._resume_at = 0.0  # in the loop's time; a server that is asked too much is left alone by all
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._starting = threading.Lock()
        self._counting = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return f"{self._settings.model} at {self._shown}"

    def reply(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        """In the order of the questions, `concurrency` of them at a time."""
        return self._run(self._all(questions)) if questions else []

    def take_counts(self) -> Mapping[str, float]:
        """Since the last call: `failed_requests/REASON`, those that were sent again and went well included."""
        with self._counting:
            counts, self._counts = self._counts, Counter()
        return counts

    def check(self, *, schema: bool = True) -> None:
        """One small question, with a schema or for a text. Raises ConfigError, a sentence, if it is not answered.

        A server that is busy or not there yet (429, 5xx) is asked again for `TRIAL_S`.
        """
        asked = [{"role": "user", "content": 'Answer {"ready": true}.'}]
        question = Question(asked, PROBE_SCHEMA if schema else None, max_new_tokens=32)
        models = self._run(self._models())
        if models and self._settings.model not in models:
            known = ", ".join(models[:8]) + (", ..." if len(models) > 8 else "")
            raise ConfigError(
                f"{self._whose} {self._shown} does not know the model {self._settings.model}: it has {known}."
            )
        try:
            self._run(asyncio.wait_for(self._trial(question), min(PROBE_S, self._settings.timeout_s)))
        except (asyncio.TimeoutError, TimeoutError):
            raise ConfigError(
                f"{self._whose} {self._shown} gave no answer within "
                f"{min(PROBE_S, self._settings.timeout_s):g} s: check that it runs, or give it more time."
            ) from None
        except Failed as error:
            raise ConfigError(
                f"{self._whose} {self._shown} did not answer a trial question to the model "
                f"{self._settings.model} ({error.detail}): check the URL, the model's name and the key."
            ) from None

    def close(self) -> None:
        """Close the connections; another call opens them again."""
        with self._starting:
            loop, client = self._loop, self._client
            self._loop = self._client = None
        if loop is not None and client is not None:
            with contextlib.suppress(Exception):  # nobody waits for what a lost server says
                asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)

    async def _all(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        slots = asyncio.Semaphore(self._settings.concurrency)

        async def one(question: Question) -> Reply | NoReply:
            async with slots:
                return await self._answer(question)

        return list(await asyncio.gather(*(one(question) for question in questions)))

    async def _answer(self, question: Question) -> Reply | NoReply:
        now = asyncio.get_running_loop().time
        for attempt in range(self._settings.max_retries + 1):
            if not self._breaker.lets_through(now()):
                return NoReply("crashed", f"{self._shown}: {self._breaker.words()}")
            await self._pause()
            try:
                reply = await asyncio.wait_for(self._once(question), self._settings.timeout_s)
            except (asyncio.TimeoutError, TimeoutError):
                failed = Failed("timeout", f"no answer within {self._settings.timeout_s:g} s", TRANSIENT)
            except Failed as error:
                failed = error
            else:
                self._breaker.succeeded()
                return reply
            with self._counting:
                self._counts[f"failed_requests/{failed.reason}"] += 1
            if not failed.retry:
                break
            if failed.wait_s is not None:
                self._resume_at = max(self._resume_at, now() + min(failed.wait_s, LONGEST_WAIT_S))
            elif attempt < self._settings.max_retries:
                await asyncio.sleep(min(self._settings.backoff_s * 2**attempt, LONGEST_WAIT_S))
        if failed.of_server:
            self._breaker.failed(now())
        else:
            self._breaker.succeeded()  # it answered, if only to refuse this question
        return NoReply(failed.reason, f"{self._shown}: {failed.detail}")

    async def _trial(self, question: Question) -> None:
        """Raises Failed; a server that is busy, or about to run, is asked again for a while."""
        now = asyncio.get_running_loop().time
        until = now() + TRIAL_S
        for attempt in count():
            try:
                await self._once(question)
                return
            except Failed as failed:
                wait_s = self._settings.backoff_s * 2**attempt if failed.wait_s is None else failed.wait_s
                if not failed.retry or attempt == self._settings.max_retries or now() + wait_s > until:
                    raise
            await asyncio.sleep(wait_s)

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait := self._resume_at - loop.time()) > 0:
            await asyncio.sleep(wait)

    async def _once(self, question: Question) -> Reply:
        """One request. Raises Failed."""
        assert self._client is not None
        try:
            response = await self._client.post(
                f"{self._url}/chat/completions",
                content=json.dumps(request_body(self._settings.model, question, self._limit_name)),
                headers={"Content-Type": "application/json", **self._headers},
            )
        except httpx.HTTPError as error:
            detail = without_secret(f"{type(error).__name__}: {error}", self._key)
            raise Failed("crashed", detail, TRANSIENT) from None
        try:
            if response.status_code != 200:
                raise failure_of(response, self._key, self._limit_name)
        except LimitRenamed as renamed:
            self._limit_name = renamed.name
            return await self._once(question)
        return read_completion(response)

    async def _models(self) -> list[str]:
        """The names that the endpoint lists; none where it lists none. Raises ConfigError if nobody listens."""
        assert self._client is not None
        try:
            response = await self._client.get(f"{self._url}/models", headers=self._headers, timeout=PROBE_S)
            listed = response.json()["data"] if response.status_code == 200 else []
            return [str(model["id"]) for model in listed]
        except httpx.ConnectError as error:
            raise ConfigError(
                f"{self._whose} {self._shown} cannot be reached ({error}): start it, or check the URL."
            ) from None
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []  # not every server lists its models; the trial question tells

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """From any thread, one with a running loop included; an interrupt ends the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                limits = httpx.Limits(max_connections=self._settings.concurrency)
                # The time limit is on a whole attempt, from outside.
                self._client = httpx.AsyncClient(limits=limits, timeout=None)
                threading.Thread(target=_serve, args=[self._loop], name="judge endpoint", daemon=True).start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
