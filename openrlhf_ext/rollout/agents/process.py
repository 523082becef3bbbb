"""The engine's side of `child`: one process per agent file and engine, started again when it died or hung."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import openrlhf_ext
from openrlhf_ext.errors import ConfigError, missing_file


@dataclass(frozen=True, slots=True)
class AgentProfile:
    """What a file holds: whose contract, and its players."""

    contract: str  # "own" or "openrlhf"
    roles: tuple[str, ...]


class ProcessEnded(Exception):
    """The process of an agent file is gone; the text says how."""


class AgentProcess:
    """A living child. Messages go out and come in by threads of their own, so that neither side ever waits for the
    other to read: a child that hangs with a full pipe stops nobody.
    """

    def __init__(self, path: str, model: str, load_timeout_s: float) -> None:
        """Start it; it imports the file on its own, and `profile` waits for that."""
        ours, theirs = Pipe()
        root = str(Path(openrlhf_ext.__file__).resolve().parent.parent)
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._connection = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child", str(theirs.fileno()), path, model],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # a group of its own, which is killed whole
        )
        theirs.close()
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for work in (self._write, self._read):
            threading.Thread(target=work, args=(ours,), daemon=True).start()
        self._path, self._load_timeout_s = path, load_timeout_s
        self._profile: AgentProfile | None = None

    @property
    def profile(self) -> AgentProfile:
        """Raises ConfigError for a file that is no agent."""
        if self._profile is None:
            try:
                self._profile = self._loaded(self._path, self._load_timeout_s)
            except BaseException:
                self.close()
                raise
        return self._profile

    def send(self, message: Mapping[str, Any]) -> None:
        """A child that is gone takes no notice; `receive` tells."""
        self._out.put(pickle.dumps(dict(message)))

    def receive(self, timeout_s: float) -> list[dict[str, Any]]:
        """What has come; waits at most so long for the first message. Raises ProcessEnded."""
        found: list[bytes | None] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._in.get(timeout=timeout_s) if timeout_s > 0 else self._in.get_nowait())
            while found[-1] is not None:
                found.append(self._in.get_nowait())
        if found[:1] == [None]:
            self._in.put(None)
            raise ProcessEnded(self._how_it_ended())
        if None in found:
            self._in.put(None)  # for the next time: what came before it counts
        return [json.loads(data) for data in found if data is not None]

    def close(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):  # the whole group has gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._out.put(None)
        self._connection.close()

    def _loaded(self, path: str, timeout_s: float) -> AgentProfile:
        where = f"--train.agent_func_path {path}"
        try:
            messages = self.receive(timeout_s)
        except ProcessEnded as error:
            raise ConfigError(f"{where}: its import ended the process ({error}); mend the file.") from None
        if not messages:
            raise ConfigError(f"{where}: its import did not end within {timeout_s:g} s; make it lighter.")
        (message,) = messages
        if message["kind"] == "unusable":
            raise ConfigError(f"{where}: {message['detail']}.")
        return AgentProfile(message["contract"], tuple(message["roles"]))

    def _write(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while (data := self._out.get()) is not None:
                connection.send_bytes(data)

    def _read(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError, TypeError):  # TypeError: closed in the middle of a read
            while True:
                self._in.put(connection.recv_bytes())
        self._in.put(None)

    def _how_it_ended(self) -> str:
        deadline = time.monotonic() + 1.0
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self._process.returncode
        if code is None:
            return "it closed its connection"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def look_at(path: str, load_timeout_s: float) -> AgentProfile:
    """Import the file once in a process of its own, before any model is loaded. Raises ConfigError."""
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise ConfigError(f"--train.agent_func_path {path}: it is no Python file (.py).")
    if not file.is_file():
        raise ConfigError(f"--train.agent_func_path: {missing_file(file)}")
    process = AgentProcess(str(file.resolve()), "", load_timeout_s)
    profile = process.profile
    process.close()
    return profile
