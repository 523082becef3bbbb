"""A reward model behind HTTP, in OpenRLHF 0.11.2's JSON (what `rewards.http` asks).

`POST /get_reward` takes {"query": [texts]}, and answers {"rewards": [numbers], "scores": the same, "extra_logs":
{"truncated": 1 for each query whose beginning was too much}}. Other keys, such as "prompts" and "labels", mean nothing
to a model that reads the query. `GET /health` says what is served. An error is {"error": one sentence}.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import logging
import math
import signal
import socket
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.log import server_logger

from openrlhf_ext.errors import ResourceError, UserError
from openrlhf_ext.rewards.line import Line, Scored

PATH = "/get_reward"
FORM = 'send {"query": ["a text", ...]}'
BACKLOG = 2048  # OpenRLHF asks about every sample over a connection of its own
READ_S = 60.0
LEAST_OF_PROMPT = 16
"""Characters of a prompt that was cut by which it is known in a query."""
CUT_CHARACTER = "\ufffd"
GRACE_S = 5.0
"""Seconds that requests have to be answered after the server was told to stop."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of one request, and of all that wait."""

    request: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Form:
    """What a server is asked and answers. `read` raises Refused for a body that is not of the form; `write` gets what
    the line says of each text.
    """

    read: Callable[[bytes], Sequence[Any]]
    write: Callable[[Sequence[Any]], dict[str, Any]]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that nobody else has the port; clients wait until `serve` takes them.

    Raises ResourceError where that cannot be.
    """
    where = f"--host {host} --port {port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror:
        raise ResourceError(
            f"{where}: there is no such address; give one of this machine, such as 127.0.0.1."
        ) from None
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: f"port {port} is in use; give another --port, or 0 for any free one",
            errno.EADDRNOTAVAIL: "this machine does not have that address; give one that it has, such as 127.0.0.1",
            errno.EACCES: f"port {port} is for the superuser; give one above 1023",
        }.get(error.errno or 0, f"it cannot be listened on ({error.strerror})")
        raise ResourceError(f"{where}: {remedy}.") from None


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


def reached_from_elsewhere(listener: socket.socket) -> bool:
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


async def serve(
    listener: socket.socket,
    line: Line,
    limits: Limits,
    about: Mapping[str, Any],
    say: Callable[[str], None],
    form: Form | None = None,
) -> None:
    """Answer until SIGINT or SIGTERM; then no more is taken, and what was asked has `GRACE_S` seconds.

    Without a form it is that of a reward model.
    """
    stop = stop_at_signal()
    runner = await RewardServer(line, limits, about, form).start(listener)
    ends = [asyncio.create_task(line.work()), asyncio.create_task(stop.wait())]
    ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if line.waiting:
        say(f"stopping within {GRACE_S:g} s; {line.waiting} texts are waiting for their scores.")
    await runner.cleanup()
    for task in ends:
        task.cancel()
    for task in ended:
        task.result()  # the line ends only by a defect


def stop_at_signal() -> asyncio.Event:
    """Is set at SIGINT or SIGTERM, which no longer end the process."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


class RewardServer:
    """The routes over a line. `about` is what `/health` tells of the model."""

    def __init__(self, line: Line, limits: Limits, about: Mapping[str, Any], form: Form | None = None) -> None:
        self._form = form or Form(queries_of, answer)
        self._line = line
        self._limits = limits
        self._about = about
        self._held = 0

    async def start(self, listener: socket.socket) -> web.AppRunner:
        """Take requests until the runner is cleaned up."""
        app = web.Application(client_max_size=self._limits.request, middlewares=[_errors_in_a_sentence])
        app.add_routes([web.post(PATH, self.get_reward), web.get("/health", self.health)])
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,  # a small body could become a large one
            handler_cancellation=True,  # nobody waits for the scores of a client that has gone
            keepalive_timeout=75,
            shutdown_timeout=GRACE_S / 2,  # aiohttp waits twice so long
        )
        server_logger.addFilter(_is_no_clients_mistake)
        await runner.setup()
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        return runner

    async def get_reward(self, request: web.Request) -> web.Response:
        size = self._admitted(request.content_length if request.body_exists else 0)
        self._held += size
        try:
            body = await _body(request)
            texts = self._form.read(body)
            del body
            scored = await self._line.ask(texts)
        finally:
            self._held -= size
        return web.json_response(self._form.write(scored))

    async def health(self, request: web.Request) -> web.Response:
        counts = {"requests": self._line.requests, "texts": self._line.texts, "waiting": self._line.waiting}
        return web.json_response({"status": "ok", **self._about, **counts})

    def _admitted(self, size: int | None) -> int:
        """The size of a request that may be read now. Raises Refused."""
        if size is None:
            raise Refused(411, "the request has no Content-Length: send the body in one piece.")
        if size > self._limits.request:
            raise Refused(413, f"the request has {size} bytes, and {self._limits.request} are the most: ask in parts.")
        if self._held + size > self._limits.waiting:
            raise Refused(503, f"{self._line.waiting} texts are waiting already: ask again later.")
        return size


class Refused(Exception):
    """A request that gets this HTTP status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status, sentence)
        self.status = status
        self.sentence = sentence


async def _body(request: web.Request) -> bytes:
    try:
        return await asyncio.wait_for(request.read(), READ_S)
    except asyncio.TimeoutError:
        raise Refused(408, f"the request was not there within {READ_S:g} s.") from None
    except web.RequestPayloadError as error:
        raise Refused(400, f"the request cannot be read ({error}).") from None


def queries_of(body: bytes) -> list[str]:
    """The texts of a request. Raises Refused (400) for a body that is not of the form."""
    return texts_of(object_of(body, FORM), "query", FORM)


def object_of(body: bytes, form: str) -> dict[str, Any]:
    """The JSON object that a body is. Raises Refused (400), which tells the form."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is not JSON ({reason}): {form}.") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {_kind(value)}, not an object: {form}.")
    return value


def texts_of(value: Mapping[str, Any], key: str, form: str) -> list[str]:
    """The list of texts under a key. Raises Refused (400) where there is none."""
    if key not in value:
        raise Refused(400, f"the body has no {key!r} (its keys: {', '.join(value)[:80] or 'none'}): {form}.")
    texts = value[key]
    if not isinstance(texts, list):
        raise Refused(400, f"{key!r} is a {_kind(texts)}, not a list of texts: {form}.")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refused(400, f"{key}[{place}] is a {_kind(text)}, not a text: {form}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused(400, f"{key}[{place}] holds half of a surrogate pair, which is no character.") from None
    return texts


def response_of(query: str, prompt: str, place: int, form: str) -> str:
    """What follows the prompt in a query, whose text is what its tokens stand for: it may be normalised otherwise, and
    lack the beginning of a prompt that was too long, as OpenRLHF cuts one. Raises Refused (400) where it has another.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    query, prompt = unicodedata.normalize("NFC", query).lstrip(CUT_CHARACTER), unicodedata.normalize("NFC", prompt)
    known_by = query[:LEAST_OF_PROMPT]
    start = prompt.find(known_by, max(0, len(prompt) - len(query)))
    while start >= 0 and len(known_by) == LEAST_OF_PROMPT:
        if query.startswith(prompt[start:]):
            return query[len(prompt) - start :]
        start = prompt.find(known_by, start + 1)
    raise Refused(400, f"query[{place}] does not begin with prompts[{place}], nor with its end: {form}.")


def answer(scored: Sequence[Scored]) -> dict[str, Any]:
    """Raises Refused (500) for a score that JSON has no word for."""
    for place, each in enumerate(scored):
        if not math.isfinite(each.score):
            raise Refused(500, f"the model's score of query[{place}] is {each.score}: try another --ds.param_dtype.")
    scores = [each.score for each in scored]
    return {
        "rewards": scores,
        "scores": scores,
        "extra_logs": {"truncated": [float(each.truncated) for each in scored]},
    }


def _is_no_clients_mistake(record: logging.LogRecord) -> bool:
    """Broken HTTP gets its 400; a traceback would look like a defect of ours."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


@web.middleware
async def _errors_in_a_sentence(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Other exceptions are defects of ours, which aiohttp answers with 500 and logs with their traceback."""
    try:
        return await handler(request)
    except Refused as refused:
        status, sentence = refused.status, refused.sentence
    except UserError as error:
        status, sentence = 500, str(error)
    except web.HTTPException as error:
        status, sentence = error.status, f"{request.method} {request.path}: {error.reason}; POST {PATH} or GET /health."
    return web.json_response({"error": sentence}, status=status)
