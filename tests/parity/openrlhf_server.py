"""A reward server of ours, running in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from openrlhf_ext.rewards.line import Line
from openrlhf_ext.rewards.server import Limits, RewardServer, listen, url_of


@contextmanager
def served(line_of: Callable[[], Line], form: Any = None) -> Iterator[str]:
    """The server's address, while it runs in a thread."""
    listener = listen("127.0.0.1", 0)
    url, ready, done = url_of(listener), threading.Event(), threading.Event()

    async def run() -> None:
        line = line_of()
        work = asyncio.create_task(line.work())
        runner = await RewardServer(line, Limits(10_000_000, 100_000_000), {}, form).start(listener)
        ready.set()
        while not done.is_set():
            await asyncio.sleep(0.02)
        work.cancel()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield url
    finally:
        done.set()
        thread.join(20)
