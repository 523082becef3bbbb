"""The process that runs one user's reward file: `python -m openrlhf_ext.rewards.child FD FILE`.

It speaks over the inherited socket FD: pickled requests in, JSON replies out (so nothing that user code
makes is unpickled in the trainer). The first reply says how loading went. User output goes to the
inherited stdout and stderr. When the trainer goes, however it goes, the socket closes and this process
kills its whole group, also while user code hangs. Standard library only: it starts in 0.1 s unless
the user's file imports more.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
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


def accepted(function: Callable[..., Any], columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Those columns of the rows that the function takes by name (all of them with `**kwargs`)."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    positional = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = set(positional[:3])  # queries, prompts and labels, whatever the function calls them
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {name: column for name, column in columns.items() if name not in taken}
    return {name: column for name, column in columns.items() if name in parameters and name not in taken}


def call(function: Callable[..., Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Call the function once; the reply to the trainer."""
    queries = request["queries"]
    try:
        value = function(queries, request["prompts"], request["labels"], **accepted(function, request["columns"]))
        if inspect.isawaitable(value):
            value = _event_loop().run_until_complete(_awaited(value))
        answer = read_answer(value, len(queries))
    except AnswerError as error:
        return {"failure": error.reason, "detail": error.detail}
    except (Exception, SystemExit):
        return {"failure": "exception", "detail": _tail()}
    return {"rewards": answer.rewards, "scores": answer.scores, "logs": answer.logs}


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


def _listen(connection: Connection, requests: queue.SimpleQueue[Any]) -> None:
    """Hand requests to the main thread; end the whole group once the trainer is gone."""
    while True:
        try:
            requests.put(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    function, reply = load(sys.argv[2])
    connection.send_bytes(json.dumps(reply).encode())
    while True:
        request = requests.get()
        assert function is not None, "the trainer does not call what failed to load"
        reply = call(function, request)
        sys.stdout.flush()
        connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
