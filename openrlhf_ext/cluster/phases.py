"""Who is awake when, where roles share a GPU.

In GENERATE the engines have the GPU, in SCORE the reward model, the student and the judge, in TRAIN the policy,
the reference and the critic; PUBLISH needs the policy and the engines' weights, but no KV cache. After PUBLISH
comes GENERATE: an engine that is half awake cannot sleep, it would have to come back as a whole
first (vLLM). The policy's files are therefore written in PUBLISH, the critic's in a phase of their
own in which those weights stay. A role that cannot sleep (a device without the capability, a GPU of
its own) is never asked to: then all of this does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

Phase = Literal["generate", "score", "train", "publish", "critic_files", "reference_files"]
Part = Literal["policy", "reference", "critic", "reward", "student", "judge", "weights", "kv_cache"]

_AWAKE: dict[Phase, frozenset[Part]] = {
    "generate": frozenset({"weights", "kv_cache"}),
    "score": frozenset({"reward", "student", "judge"}),
    "train": frozenset({"policy", "reference", "critic"}),
    "publish": frozenset({"policy", "weights"}),
    "critic_files": frozenset({"critic", "weights"}),
    "reference_files": frozenset({"reference", "weights"}),
}


@dataclass(frozen=True, slots=True)
class Sleeper:
    """How to put something to sleep and wake it, and which parts of the GPU's memory it is."""

    parts: frozenset[Part]
    sleep: Callable[[], None]
    wake: Callable[[frozenset[Part]], None]


class Phases:
    """Moves between phases: first who leaves, then who comes, so that both never lie in memory together.

    Several threads may enter the same phase at a time: those that score.
    """

    def __init__(self, sleepers: Mapping[str, Sleeper], asleep: Collection[str] = ()) -> None:
        self._sleepers = sleepers
        awake = (sleeper.parts for name, sleeper in sleepers.items() if name not in asleep)
        self._awake: frozenset[Part] = frozenset(chain.from_iterable(awake))
        self._moving = threading.Lock()

    def enter(self, phase: Phase) -> None:
        with self._moving:
            self._move(_AWAKE[phase])

    def _move(self, wanted: frozenset[Part]) -> None:
        for sleeper in self._sleepers.values():
            # A sleeper leaves as a whole; what it must keep comes back below.
            if sleeper.parts & self._awake - wanted:
                sleeper.sleep()
                self._awake -= sleeper.parts
        for sleeper in self._sleepers.values():
            if missing := (sleeper.parts & wanted) - self._awake:
                sleeper.wake(missing)
                self._awake |= missing
