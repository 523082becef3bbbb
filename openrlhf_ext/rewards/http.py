"""A reward server in OpenRLHF 0.11.2's JSON: POST {"query", "prompts", "labels"}, one list entry per sample.

The answer is a JSON object `{"rewards": [...], "scores": [...], "extra_logs": {...}}` (see `answer`).

A batch may go in several requests at a time, to one server or to several that answer alike. Only the requests that
failed are sent again, to the next server. A request that a server's own error ends for good is cut in two, down to
the rows that it cannot answer; all others are kept.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import Answer, AnswerError, bad_positions, read_answer
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.rewards.sources import HttpSettings
from openrlhf_ext.types import Metric, Report

AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""The HTTP statuses after which the same request may be answered."""
OF_ROWS = {"400", "413", "422", "500", "502", "wrong_type"}
"""What may be one row's fault, or the size's: the server is there, and cannot answer for all of them."""
DIVISIONS_IN_VAIN = 16
"""So many halves in a row without an answer: it is the server's fault, and no row's."""
JITTER = 0.1  # of a wait, so that requests which failed together do not come back together


@dataclass(slots=True)
class Circuit:
    """Whether requests are worth sending: not for a while after several in a row have failed."""

    url: str
    settings: HttpSettings
    failures: int = 0
    opened_at: float = -math.inf

    @property
    def is_open(self) -> bool:
        return (
            self.failures >= self.settings.failures_to_open
            and time.monotonic() < self.opened_at + self.settings.cooldown_s
        )

    def failed(self) -> None:
        self.failures += 1
        self.opened_at = time.monotonic()

    def answered(self) -> None:
        self.failures = 0


class _Failed(Exception):
    """One request without a usable answer, whether it may be sent again, and when at the earliest (seconds)."""

    def __init__(self, error: AnswerError, counted: str, *, again: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(error, counted)
        self.error = error
        self.counted = counted
        self.again = again
        self.wait_s = wait_s


@dataclass(slots=True)
class _Call:
    """One `ask`: its client, and the limits of each of its requests."""

    client: httpx.AsyncClient
    batch: RewardBatch
    timeout_s: float
    retries: int
    gate: asyncio.Semaphore
    answers: list[tuple[range, Answer]] = field(default_factory=list)
    errors: list[tuple[range, int, AnswerError]] = field(default_factory=list)  # and how many of the rows it cost
    in_vain: int = 0  # divisions since the last one that was answered


class HttpSource:
    """A reward server at a URL, or at several with `|` between them that answer alike.

    `timeout_s` of an `ask` is for one request, from its beginning to its end.
    """

    signature = "an HTTP server"

    def __init__(
        self,
        name: str,
        spec: str,
        settings: HttpSettings | None = None,
        *,
        max_retries: int = 2,
        backoff_s: float = 1.0,
    ) -> None:
        urls = [url.strip() for url in spec.split("|")]
        for url in urls:
            if not _names_host(url):
                raise RewardError(f"reward URL {url!r} names no host: give http://HOST:PORT/PATH.")
        self.name = name
        self.origin = spec
        self._settings = settings or HttpSettings()
        self._circuits = [Circuit(url, self._settings) for url in urls]
        self._max_retries = max_retries
        self._backoff_s = backoff_s
        self._next = 0
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Nothing to start: the server is another's."""

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """The server's answers for a batch. Raises AnswerError, with the answers that there are.

        A trial call is sent once.
        """
        try:
            json.dumps(batch.labels)
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {self.origin}: the labels cannot be sent as JSON ({error}).") from None
        start = time.monotonic()
        call = asyncio.run(self._ask(batch, timeout_s))
        self._counts["seconds"] += time.monotonic() - start  # type: ignore[assignment]  # a Counter adds floats too
        answer = _joined(len(batch.queries), call.answers)
        if call.errors:
            lost = sum(n for _, n, _ in call.errors)
            first = call.errors[0][2]
            if lost < len(batch.queries):
                detail = f"{lost} of {len(batch.queries)} rows have no reward: {first.detail}"
                raise AnswerError(first.reason, detail, answer, final=True)
            raise AnswerError(first.reason, first.detail, answer, final=True)
        return answer

    def take_report(self) -> Report:
        """Since the last call, under `reward/http/`: requests, rows, retries/REASON, given_up, refused, seconds."""
        counts, self._counts = self._counts, Counter()
        return {f"reward/http/{name}": Metric(float(n), reduction="sum") for name, n in counts.items()}

    def close(self) -> None:
        """Nothing to close: a client lives as long as an `ask`."""

    async def _ask(self, batch: RewardBatch, timeout_s: float) -> _Call:
        n = len(batch.queries)
        size = self._settings.batch_size or n
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:
            gate = asyncio.Semaphore(self._settings.concurrency)
            call = _Call(client, batch, timeout_s, 0 if batch.trial else self._max_retries, gate)
            parts = [range(start, min(start + size, n)) for start in range(0, n, size)]
            await asyncio.gather(*(self._ask_part(call, part) for part in parts))
        call.errors.sort(key=lambda each: each[0].start)
        return call

    async def _ask_part(self, call: _Call, rows: range) -> None:
        """Keep the answer for these rows, or why there is none."""
        async with call.gate:  # held over the retries: others need not find out the same
            try:
                call.answers.append((rows, await self._with_retries(call, rows)))
                return
            except _Failed as failed:
                error, counted = failed.error, failed.counted
        if counted in OF_ROWS and not call.batch.trial:
            await self._divide(call, rows, error)
        else:
            self._lost(call, rows, error)

    async def _divide(self, call: _Call, rows: range, error: AnswerError) -> None:
        """A request for these rows failed for good: ask once for each half of them, and go on so."""
        if len(rows) == 1:
            self._lost(call, rows, error)
            return
        middle = (rows.start + rows.stop) // 2
        for half in (range(rows.start, middle), range(middle, rows.stop)):
            if call.in_vain >= DIVISIONS_IN_VAIN:
                self._lost(call, half, error)
                continue
            circuit = self._turn()
            try:
                async with call.gate:
                    call.answers.append((half, await self._request(call, half, circuit.url)))
                circuit.answered()
                call.in_vain = 0
            except _Failed as failed:
                call.in_vain += 1
                if failed.counted in OF_ROWS:
                    await self._divide(call, half, failed.error)
                else:
                    self._lost(call, half, failed.error)

    def _lost(self, call: _Call, rows: range, error: AnswerError) -> None:
        n = len(rows)
        if error.answer is not None:  # only some of the rows have no reward
            n = len(bad_positions(error.answer))
            call.answers.append((rows, error.answer))
        self._counts["given_up"] += n
        call.errors.append((rows, n, error))

    async def _with_retries(self, call: _Call, rows: range) -> Answer:
        """Raises _Failed after the last retry, and at once while every server's circuit is open."""
        if all(circuit.is_open for circuit in self._circuits) and not call.batch.trial:
            self._counts["refused"] += 1
            detail = f"not asked: the last {self._circuits[0].failures} requests failed; tried again after a while"
            raise _Failed(AnswerError("exception", detail), "refused", again=False)
        attempt, circuit = 0, None
        while True:
            circuit = self._turn(circuit)
            try:
                answer = await self._request(call, rows, circuit.url)
            except _Failed as failed:
                if failed.counted in ("timeout", "connection") or failed.counted.startswith("5"):
                    circuit.failed()
                if attempt >= call.retries or not failed.again:
                    raise
                wait_s = max(self._backoff_s * 2**attempt, min(failed.wait_s, call.timeout_s))
                self._counts[f"retries/{failed.counted}"] += 1
            else:
                circuit.answered()
                return answer
            await asyncio.sleep(wait_s * (1 + JITTER * random.random()))
            attempt += 1

    def _turn(self, failed: Circuit | None = None) -> Circuit:
        """The next server in turn, of those whose circuit is closed where there are any; not the one that has just
        `failed`, where there is another.
        """
        closed = [circuit for circuit in self._circuits if not circuit.is_open] or self._circuits
        others = [circuit for circuit in closed if circuit is not failed] or closed
        self._next += 1
        return others[self._next % len(others)]

    async def _request(self, call: _Call, rows: range, url: str) -> Answer:
        part = call.batch.part(rows.start, rows.stop)
        body = json.dumps({"query": part.queries[:], "prompts": part.prompts, "labels": part.labels})
        headers = {"Content-Type": "application/json"}
        self._counts["requests"] += 1
        self._counts["rows"] += len(rows)
        try:
            response = await asyncio.wait_for(call.client.post(url, content=body, headers=headers), call.timeout_s)
        except asyncio.TimeoutError:
            raise _Failed(AnswerError("timeout", f"no answer within {call.timeout_s:g} s"), "timeout") from None
        except httpx.HTTPError as error:
            detail = f"{type(error).__name__}: {error}"
            raise _Failed(AnswerError("exception", detail), "connection") from None
        if response.is_error:
            status = response.status_code
            detail = f"HTTP status {status}: {response.text.strip()[:200]}"
            again = status in AGAIN
            raise _Failed(AnswerError("exception", detail), str(status), again=again, wait_s=_retry_after(response))
        return _read(response, len(rows))


def _read(response: httpx.Response, n: int) -> Answer:
    try:
        answer = read_answer(response.json(), n)
    except AnswerError as error:
        raise _Failed(error, error.reason) from None
    except ValueError:
        not_json = AnswerError("wrong_type", f"not JSON: {response.text.strip()[:200]!r}")
        raise _Failed(not_json, "wrong_type") from None
    if bad := bad_positions(answer):
        not_finite = AnswerError("not_finite", f"{len(bad)} of {n} rewards or scores are not finite", answer)
        raise _Failed(not_finite, "not_finite")
    return answer


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks for; 0 where it does not say, or gives a date."""
    try:
        return max(float(response.headers.get("Retry-After", 0)), 0.0)
    except ValueError:
        return 0.0


def _joined(n: int, parts: Sequence[tuple[range, Answer]]) -> Answer:
    """The answers in their places, not-a-number where there is none; scores, logs and notes that all of them have."""
    rewards, scores, notes = [math.nan] * n, [math.nan] * n, [""] * n
    names = set.intersection(*(set(answer.logs) for _, answer in parts)) if parts else set()
    logs = {name: [math.nan] * n for name in sorted(names)}
    for rows, answer in parts:
        place = slice(rows.start, rows.stop)
        rewards[place] = answer.rewards
        if answer.scores is not None:
            scores[place] = answer.scores
        if answer.notes is not None:
            notes[place] = answer.notes
        for name, log in logs.items():
            log[place] = answer.logs[name]
    scored = bool(parts) and all(answer.scores is not None for _, answer in parts)
    noted = bool(parts) and all(answer.notes is not None for _, answer in parts)
    return Answer(rewards, scores if scored else None, logs, notes if noted else None)


def _names_host(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)
