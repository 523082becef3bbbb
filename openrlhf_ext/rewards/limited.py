"""A function on many values, each within a time and memory limit of its own, whatever the code under it does.

A value that hangs in C code, or takes all memory, ends the process that works on it and nothing else. Standard
library only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from openrlhf_ext.cores import usable_cores

MEMORY_BYTES = 2 << 30  # beyond what the process has already
MOST_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Why there is no value: `timeout`, `failed` (an exception, or its process died), or `late` (never begun)."""

    reason: str


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    place: int = -1
    deadline: float = 0.0

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def each_in_time(
    function: Callable[[Any], Any], values: Sequence[Any], *, limit_s: float, until: float
) -> list[Any | Unfinished]:
    """`function` of each value in order, in forked processes; none is begun after `until` (of time.monotonic)."""
    results: list[Any | Unfinished] = [Unfinished("late")] * len(values)
    places = iter(range(len(values)))
    workers: list[_Worker] = []
    try:
        for _ in range(min(MOST_WORKERS, usable_cores(), len(values))):
            workers.append(_start(function))
            _give(workers, len(workers) - 1, values, next(places), limit_s)
        while busy := [worker for worker in workers if worker.place >= 0]:
            ready = wait([worker.pipe for worker in busy], max(min(w.deadline for w in busy) - time.monotonic(), 0.0))
            for index, worker in enumerate(workers):
                if worker.place < 0:
                    continue
                if worker.pipe in ready:
                    results[worker.place], alive = _result(worker)
                elif time.monotonic() >= worker.deadline:
                    results[worker.place], alive = Unfinished("timeout"), False
                else:
                    continue
                place = next(places, -1) if time.monotonic() < until else -1
                if not alive:
                    worker.end()
                    workers[index] = _start(function)
                _give(workers, index, values, place, limit_s)
    finally:
        for worker in workers:
            worker.end()
    return results


def _start(function: Callable[[Any], Any]) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_work, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(workers: list[_Worker], index: int, values: Sequence[Any], place: int, limit_s: float) -> None:
    """The value at `place` to a worker, which rests where there is none (-1)."""
    worker = workers[index]
    worker.place, worker.deadline = place, time.monotonic() + limit_s
    if place >= 0:
        with contextlib.suppress(OSError):  # it died: waiting for its result tells so
            worker.pipe.send(values[place])


def _result(worker: _Worker) -> tuple[Any | Unfinished, bool]:
    """What the worker sent, and whether it lives on."""
    try:
        good, value = worker.pipe.recv()
    except (EOFError, OSError):
        return Unfinished("failed"), False
    return (value if good else Unfinished("failed")), True


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    own = pipe.fileno()  # what else it has inherited keeps others from seeing that its parent has gone
    os.closerange(3, own)
    os.closerange(own + 1, 4096)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.RLIM_INFINITY))
    while True:
        try:
            value = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            result = (True, function(value))
        except (Exception, MemoryError, RecursionError):
            result = (False, None)
        pipe.send(result)
