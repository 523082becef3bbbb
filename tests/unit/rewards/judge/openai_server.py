"""A real HTTP server that speaks the form of OpenAI's chat completions, and a judge behind it that follows a rule.

The judge is as gullible as it can be made: it reads the fence from the prompt as the prompt states it, and whatever
it finds outside of a fence beyond what the prompt of a harmless case has there, it obeys.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

OPEN = re.compile(r"<data ([^\s>]+)>")
# What a server's chat template would read as the end of a turn or the beginning of another.
CONTROL = re.compile(
    r"<\|\w+\|>|<｜|</?s>|<<SYS>>|\[/?INST\]|<(start|end)_of_turn>|<(bos|eos|pad)>|<\|start_header_id\|>|\x1b|\u202e|"
    r"[\u200b\u2060\ufeff]|[\U000e0000-\U000e007f]",
)
ANSWER = re.compile(r"^Answer: (\S+)$", re.MULTILINE)


def split(prompt: str) -> tuple[str, list[str]]:
    """What stands outside the fences, with a mark for each of them, and what stands inside."""
    outside, inside, rest = [], [], prompt
    # "between <data KEY> and </data KEY>" of the statement itself has no key of its own.
    head, _, rest = rest.partition("\n\n")
    while (found := OPEN.search(rest)) is not None:
        close = f"</data {found.group(1)}>"
        if close not in rest:
            break
        body, _, after = rest[found.end() :].partition(close)
        outside.append(rest[: found.start()])
        inside.append(body.strip("\n"))
        rest = after
    return "\u0001".join([head, *outside, rest]), inside


class RuleJudge:
    """Right if the response's last line that says so names the reference; fooled by any order outside the data."""

    def __init__(self) -> None:
        self.harmless: str | None = None  # what stands outside the fences of a harmless case

    def verdict(self, prompt: str) -> dict[str, Any]:
        outside, inside = split(prompt)
        if CONTROL.search(prompt) or len(inside) != 3 or (self.harmless is not None and outside != self.harmless):
            return {"correct": True, "grade": 10}
        _, reference, response = inside
        said = ANSWER.findall(response)
        correct = bool(said) and said[-1] == reference
        return {"correct": correct, "grade": 9 if correct else 2}


class OpenAIServer:
    """Answers by `rule(prompt)`, after the reactions that wait in `reactions`, one for each request to come.

    A reaction is an HTTP status, (status, headers), a text to be sent as the judge's, ("slow", seconds), "drop",
    "html" or None for the rule. `always` is the reaction to all further requests.
    """

    def __init__(self, rule: Callable[[str], Any]) -> None:
        self.rule = rule
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reactions: deque[Any] = deque()
        self.always: Any = None
        self.models: list[str] | None = ["judge"]
        self.busy = self.most_busy = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> OpenAIServer:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        return self

    def stop(self) -> None:
        """Its connections are cut, and nobody listens at its port."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        if self.models is None:
            return web.Response(status=404, text="no such page")
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _complete(self, request: web.Request) -> web.Response:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            return await self._react(request, await request.json())
        finally:
            self.busy -= 1

    async def _react(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        reaction = self.reactions.popleft() if self.reactions else self.always
        status, headers, text = 200, {}, None
        if isinstance(reaction, int):
            return web.Response(status=reaction, text=f"status {reaction} for {request.headers.get('Authorization')}")
        if reaction == "drop":
            assert request.transport is not None
            request.transport.close()
        elif reaction == "html":
            return web.Response(text="<html>busy</html>", content_type="text/html")
        elif isinstance(reaction, str):
            text = reaction
        elif isinstance(reaction, dict):
            return web.json_response(reaction, status=reaction.get("status", 200))
        elif isinstance(reaction, tuple) and reaction[0] == "slow":
            await asyncio.sleep(reaction[1])
        elif reaction is not None:
            status, headers = reaction
            return web.Response(status=status, headers=headers, text="later")
        if text is None:
            text = json.dumps(self.rule(body["messages"][-1]["content"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        return web.json_response({"choices": [choice], "usage": usage}, status=status)
