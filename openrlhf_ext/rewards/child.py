"""The process that runs one user's reward file: `python -m openrlhf_ext.rewards.child FD FILE`.

It speaks over the inherited socket FD: pickled requests in, JSON replies out (so nothing that user code
makes is unpickled in the trainer). The first reply says how loading went. Before the reply to a call may come
questions to the judge, which the trainer's process asks; their answers come back over the same socket. User
output goes to the inherited stdout and stderr. When the trainer goes, however it goes, the socket closes and
this process kills its whole group, also while user code hangs. Standard library only: it starts in 0.1 s unless
the user's file imports more.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import json
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from openrlhf_ext.rewards.answer import AnswerError, read_answer

if TYPE_CHECKING:
    import asyncio

FUNCTION = "reward_func"
TRACEBACK_LINES = 12


def load(path: str) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """Import the file; its function (None if that failed) and the reply to the trainer."""
    sys.path.append(os.path.dirname(os.path.abspath(path)))  # its neighbours are importable, and hide nothing
    try:
        spec = importlib.util.spec_from_file_location("reward_func", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
        spec.loader.exec_module(module)
    except SyntaxError as error:
        return None, {
            "failure": "load",
            "detail": f"syntax error in {error.filename}, line {error.lineno}: {error.msg}",
        }
    except (Exception, SystemExit):
        return None, {"failure": "load", "detail": f"it cannot be imported:\n{_tail()}"}
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        return None, {
            "failure": "load",
            "detail": f"it has no function {FUNCTION} (its functions: {', '.join(names) or 'none'})",
        }
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some C functions do not tell
        return function, {"signature": "(...)"}
    try:
        signature.bind_partial([], [], [])
    except TypeError as error:
        return None, {"failure": "signature", "detail": str(error), "signature": f"{FUNCTION}{signature}"}
    return function, {"signature": f"{FUNCTION}{signature}"}


class NoJudgeYet(BaseException):
    """Ends a trial call where it asks a judge that is started later. No Exception: user code is not to catch it."""


class Wire:
    """The socket to the trainer, which several threads may write to."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[list[Any]]] = {}
        self._numbers = itertools.count()

    def send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode()
        with self._lock:
            self.connection.send_bytes(data)

    def ask(self, question: Mapping[str, Any]) -> Future[list[Any]]:
        """Send a question to the judge; the future has its answers."""
        answers: Future[list[Any]] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = answers
        self.send({"ask": number, **question})
        return answers

    def answered(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            answers = self._waiting.pop(message["ask"])
        if "error" in message:
            answers.set_exception(RuntimeError(message["error"]))
        else:
            answers.set_result(message["answers"])


class Judge:
    """What user code is given as `judge`: the run's judge, which the trainer's process asks."""

    def __init__(self, wire: Wire, *, is_there: bool) -> None:
        self._wire = wire
        self._is_there = is_there

    def ask(self, items: Sequence[Any], schema: Mapping[str, Any] | None = None, **options: Any) -> list[Any]:
        """The judge's answers to texts or conversations, in their order; it returns when all are there.

        With a JSON schema an answer is the parsed JSON, without one the text; None where there is no answer.
        """
        return self._ask(items, schema, options).result()

    async def ask_async(self, items: Sequence[Any], schema: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """The same for `async def` functions: others go on meanwhile."""
        import asyncio

        return await asyncio.wrap_future(self._ask(items, schema, options))

    def _ask(self, items: Sequence[Any], schema: Any, options: Mapping[str, Any]) -> Future[list[Any]]:
        if isinstance(items, str):
            raise ValueError("judge.ask takes a list of texts, not one text: judge.ask([text])")
        if unknown := set(options) - {"max_new_tokens", "temperature"}:
            raise TypeError(f"judge.ask has no argument {', '.join(sorted(unknown))}")
        if not self._is_there:
            raise NoJudgeYet
        return self._wire.ask({"items": list(items), "schema": schema, "options": dict(options)})


def accepted(
    function: Callable[..., Any], columns: Mapping[str, Sequence[Any]], judge: Judge | None = None
) -> dict[str, Any]:
    """Those columns of the rows that the function takes by name (all of them with `**kwargs`), and the judge.

    Where no judge is configured, `judge` is None for a function that names it, and not there for `**kwargs`.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    positional = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = set(positional[:3])  # queries, prompts and labels, whatever the function calls them
    if judge is not None or ("judge" in parameters and "judge" not in columns):
        columns = {**columns, "judge": judge}  # type: ignore[dict-item]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {name: column for name, column in columns.items() if name not in taken}
    return {name: column for name, column in columns.items() if name in parameters and name not in taken}


def call(function: Callable[..., Any], request: Mapping[str, Any], wire: Wire) -> dict[str, Any]:
    """Call the function once; the reply to the trainer."""
    queries = request["queries"]
    judge = None if request["judge"] is None else Judge(wire, is_there=request["judge"])
    try:
        keywords = accepted(function, request["columns"], judge)
        value = function(queries, request["prompts"], request["labels"], **keywords)
        if inspect.isawaitable(value):
            value = _event_loop().run_until_complete(_awaited(value))
        answer = read_answer(value, len(queries))
    except NoJudgeYet:
        return {"later": True}
    except AnswerError as error:
        return {"failure": error.reason, "detail": error.detail}
    except (Exception, SystemExit):
        return {"failure": "exception", "detail": _tail()}
    return {"rewards": answer.rewards, "scores": answer.scores, "logs": answer.logs, "notes": answer.notes}


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for the life of the process: clients that user code keeps are bound to it."""
    import asyncio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _tail() -> str:
    """The end of the traceback, without our own frames at its head."""
    kind, error, trace = sys.exc_info()
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(kind, error, trace)).rstrip().splitlines()
    lines = [line for line in lines if "<frozen importlib" not in line]
    return "\n".join(lines[-TRACEBACK_LINES:])


def _listen(wire: Wire, requests: queue.SimpleQueue[Any]) -> None:
    """Hand requests to the main thread and answers to those who wait; end the whole group once the trainer is gone."""
    while True:
        try:
            message = pickle.loads(wire.connection.recv_bytes())
        except (EOFError, OSError):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        if "ask" in message:
            wire.answered(message)
        else:
            requests.put(message)


def main() -> None:
    wire = Wire(Connection(int(sys.argv[1])))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(wire, requests), daemon=True).start()
    function, reply = load(sys.argv[2])
    wire.send(reply)
    while True:
        request = requests.get()
        assert function is not None, "the trainer does not call what failed to load"
        reply = call(function, request, wire)
        sys.stdout.flush()
        wire.send(reply)


if __name__ == "__main__":
    main()
