"""Turns of several processes on one machine: only those count in which nothing else ran.

Times in seconds of wall clock, CPU in core-seconds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

QUIET_CORES = 0.1
"""A turn counts if, on average, processes that are none of the benchmark's used at most so many cores during it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side did once.

    `seconds` is the wall clock of the whole step, `phases` the parts that the side tells apart; `lengths` are tokens
    of each answer. `details` is for other sides (the tokens themselves) and is not reported.
    """

    seconds: float
    phases: Mapping[str, float]
    lengths: Sequence[int] = ()
    details: Any = None


@dataclass(frozen=True, slots=True)
class Load:
    """Cores used during a turn, on average, beside the side whose turn it was.

    `others` by processes that are none of the benchmark's, `idle` by the sides that waited (Ray's daemons, mostly).
    `own` is of the side itself, in core-seconds: what a busy machine changes least.
    """

    others: float
    idle: float = 0.0
    own: float = 0.0


@dataclass(slots=True)
class Turns:
    """The turns of one side, with what else ran meanwhile."""

    kept: list[Turn] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    discarded: int = 0

    @property
    def disturbed(self) -> int:
        """Turns that were kept although the machine was not quiet: the bound on repeats was reached."""
        return sum(load.others > QUIET_CORES for load in self.loads)

    def seconds(self) -> float:
        return statistics.median(turn.seconds for turn in self.kept)

    def phases(self) -> dict[str, float]:
        """The median of every phase, in the order in which phases first appear."""
        names = dict.fromkeys(name for turn in self.kept for name in turn.phases)
        return {name: statistics.median(turn.phases.get(name, 0.0) for turn in self.kept) for name in names}


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """The clock, and core-seconds so far: of the whole machine, of the benchmark, of the side whose turn it is."""

    wall: float
    machine: float
    benchmark: float
    side: float

    @classmethod
    def read(cls, side: int) -> Stopwatch:
        """`side` is its process; the benchmark's is this one."""
        return cls(
            time.perf_counter(), machine_seconds(psutil.cpu_times()), tree_seconds(os.getpid()), tree_seconds(side)
        )

    def load(self, later: Stopwatch) -> Load:
        """Between this reading and a later one."""
        wall = later.wall - self.wall
        ours = later.benchmark - self.benchmark
        own = later.side - self.side
        others, idle = later.machine - self.machine - ours, ours - own
        return Load(max(others, 0.0) / wall, max(idle, 0.0) / wall, own)


def machine_seconds(times: Any) -> float:
    """Core-seconds in which some process ran (or the machine's host took the core away)."""
    # `guest` is part of `user` already.
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, name, 0.0) for name in names)


def tree_seconds(pid: int) -> float:
    """Core-seconds of a process and all it started, those that ended and were waited for included."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += sum(process.cpu_times()[:4])  # user, system, and both of children that were waited for
        except psutil.NoSuchProcess:
            continue
    return total


def take_turns(
    play: Callable[[str], tuple[Turn, Load]], sides: Sequence[str], rounds: int, *, repeats: int
) -> dict[str, Turns]:
    """Let the sides play in turn, one turn each a round.

    `play(side)` returns the turn and what else ran meanwhile. A disturbed turn is played again at once,
    at most `repeats` times a side; after that it is kept, and counted as disturbed.
    """
    turns = {side: Turns() for side in sides}
    for _ in range(rounds):
        for side in sides:
            record = turns[side]
            turn, load = play(side)
            while load.others > QUIET_CORES and record.discarded < repeats:
                record.discarded += 1
                turn, load = play(side)
            record.kept.append(turn)
            record.loads.append(load)
    return turns
