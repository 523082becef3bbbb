"""Questions of an agent's process to its engine. Standard library only."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from multiprocessing.connection import Connection
from typing import Any

EPISODE: ContextVar[int | None] = ContextVar("EPISODE", default=None)
"""Which episode the running code plays; None in threads that user code started."""


class Calls:
    """The way to the engine, for any thread and any event loop: JSON out, and each question waits for its answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = {}

    def send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode()
        with self._sending:
            self._connection.send_bytes(data)

    async def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The engine's answer."""
        loop = asyncio.get_running_loop()
        number, answer = next(self._numbers), loop.create_future()
        self._waiting[number] = (loop, answer)
        try:
            self.send({**message, "call": number})
            return await answer
        finally:
            self._waiting.pop(number, None)

    def answer(self, number: int, reply: Mapping[str, Any]) -> None:
        """Called by the thread that listens to the engine."""
        loop, answer = self._waiting.get(number, (None, None))
        if loop is not None and answer is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_set, answer, reply)


def _set(answer: asyncio.Future[Any], reply: Mapping[str, Any]) -> None:
    if not answer.done():  # its episode may have been cancelled
        answer.set_result(reply)
