"""The process that plays the episodes of one agent file: `python -m openrlhf_ext.rollout.agents.child FD FILE MODEL`.

It speaks over the inherited socket FD: pickled messages in, JSON out (so nothing that user code makes is unpickled in
the engine). The first message out says how loading went. Episodes are tasks of one asyncio loop in the main thread;
another thread listens. User output goes to the inherited stdout and stderr. When the engine goes, however it goes, the
socket closes and this process kills its whole group, also while user code hangs. Standard library only, unless the
user's file imports more or is one of OpenRLHF's. MODEL is the policy's folder, empty for a mere look at the file.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from openrlhf_ext.rollout.agents import talks
from openrlhf_ext.rollout.agents.calls import Calls
from openrlhf_ext.rollout.agents.contract import Task
from openrlhf_ext.rollout.agents.draws import seed_draws
from openrlhf_ext.rollout.agents.files import Loaded, UnusableFile, load, tail


class Stage:
    """The episodes that are being played. Its methods run in the event loop."""

    def __init__(self, loaded: Loaded, calls: Calls, tokenizer: Any) -> None:
        self._loaded = loaded
        self._calls = calls
        self._tokenizer = tokenizer
        self._playing: dict[int, asyncio.Task[None]] = {}
        self._engine: Any = None

    def receive(self, message: Mapping[str, Any]) -> None:
        number = message["episode"]
        if message["kind"] == "play":
            self._playing[number] = asyncio.get_running_loop().create_task(self._play(number, message))
        else:
            if (task := self._playing.get(number)) is not None:
                task.cancel()
            self._calls.send({"kind": "cancelled", "episode": number})

    async def _play(self, number: int, message: Mapping[str, Any]) -> None:
        try:
            result = await self._episode(number, message)
        except talks.WrongType as error:
            result = {"kind": "failed", "reason": "wrong_type", "detail": str(error)}
        except (Exception, SystemExit):
            result = {"kind": "failed", "reason": "exception", "detail": tail()}
        finally:
            self._playing.pop(number, None)
            sys.stdout.flush()
        try:
            self._calls.send({**result, "episode": number})
        except (TypeError, ValueError) as error:
            detail = f"what it returned is no JSON: {error}"
            self._calls.send({"kind": "failed", "reason": "wrong_type", "detail": detail, "episode": number})

    async def _episode(self, number: int, message: Mapping[str, Any]) -> dict[str, Any]:
        task = message["task"]
        if self._loaded.agent is not None:
            seed_draws(task["seed"], 0)
            return await talks.play(self._loaded.agent, Task(**task), self._calls, number)
        from openrlhf_ext.rollout.agents import openrlhf_play

        if self._engine is None:
            self._engine = openrlhf_play.EngineHandle(self._calls)
        self._engine.begin(number, task["seed"])
        seed_draws(task["seed"], 0)
        try:
            return await openrlhf_play.play(
                self._loaded.executor, task, message["limits"], self._tokenizer, self._engine
            )
        finally:
            self._engine.end(number)


def listen(connection: Connection, calls: Calls, receive: Callable[[Mapping[str, Any]], None]) -> None:
    """Hand messages on; end the whole group once the engine is gone."""
    while True:
        try:
            message = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        if message["kind"] == "turn":
            calls.answer(message["call"], message)
        else:
            receive(message)


def tokenizer_of(model: str) -> Any:
    """The policy's, which executors tokenize with. Its libraries take seconds to import."""
    from openrlhf_ext.data.tokenizer import load_tokenizer

    return load_tokenizer(model)


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    path, model = sys.argv[2:]
    calls, loop = Calls(connection), asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    stages: list[Stage] = []  # one, once the file is loaded; no episode comes before

    def receive(message: Mapping[str, Any]) -> None:
        loop.call_soon_threadsafe(stages[0].receive, message)

    threading.Thread(target=listen, args=(connection, calls, receive), daemon=True).start()
    try:
        loaded = load(path)
    except UnusableFile as error:
        calls.send({"kind": "unusable", "detail": str(error)})
        return
    stages.append(Stage(loaded, calls, tokenizer_of(model) if model and loaded.agent is None else None))
    contract = "own" if loaded.agent is not None else "openrlhf"
    calls.send({"kind": "loaded", "contract": contract, "roles": list(loaded.roles)})
    loop.run_forever()


if __name__ == "__main__":
    main()
