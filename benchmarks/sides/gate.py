"""How a side waits for its turn, and the processes that sides are."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from measure import Load, Stopwatch, Turn

FAILED_LINES = 15
"""Of a side's log, shown where it fails."""


class Workload(Protocol):
    """What a side is given: a picklable value whose files, and the side's log, are in one folder."""

    @property
    def folder(self) -> Path: ...


class Gate:
    """A side's end. The clock of a step runs from `wait` to `finish`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._start: float | None = None

    @property
    def running(self) -> bool:
        return self._start is not None

    def wait(self) -> Any | None:
        """Block until it is this side's turn; what it is given for it, or None: there are no more turns."""
        given = self._connection.recv()
        self._start = None if given is None else time.perf_counter()
        return given

    def seconds(self) -> float:
        """How long this turn has taken so far."""
        assert self._start is not None, "no turn has begun"
        return time.perf_counter() - self._start

    def finish(self, turn: Turn) -> None:
        self._start = None
        self._connection.send(turn)


@dataclass(frozen=True, slots=True)
class Side:
    """The main process's end."""

    name: str
    process: Any
    connection: Connection
    log: Path

    @classmethod
    def start(cls, name: str, workload: Workload, environment: Mapping[str, str]) -> Side:
        """Run `serve` of the module sides.<name> in a process with these variables; its output goes to a file."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        log = workload.folder / f"{name}.log"
        process = context.Process(target=_run, args=(name, workload, theirs, log), name=name)
        before = dict(os.environ)
        os.environ.update(environment)  # libraries read theirs when they are loaded: before any line of ours
        try:
            process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()
        return cls(name, process, mine, log)

    def play(self, given: Any = ()) -> tuple[Turn, Load]:
        """One turn, and what else ran on the machine meanwhile."""
        before = Stopwatch.read(self.process.pid)
        try:
            self.connection.send(given)
            turn = self.connection.recv()
        except (EOFError, OSError):
            raise SideError(self.name, self.log) from None
        return turn, before.load(Stopwatch.read(self.process.pid))

    def end(self) -> None:
        with suppress(OSError):  # it may have ended by itself
            self.connection.send(None)
        self.process.join(timeout=60)
        if self.process.is_alive():
            self.process.terminate()


class SideError(Exception):
    """A side ended before its turn was over."""

    def __init__(self, name: str, log: Path) -> None:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        super().__init__("\n".join([f"The side {name} failed; the end of {log}:", *lines[-FAILED_LINES:]]))


def _run(name: str, workload: Workload, connection: Connection, log: Path) -> None:
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        importlib.import_module(f"sides.{name}").serve(workload, Gate(connection))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)
