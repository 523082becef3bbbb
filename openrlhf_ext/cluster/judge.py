"""The judge on Ray: questions over its engines, and new engines for those that die."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.waits import Death, outcomes
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply
from openrlhf_ext.track.memory import MemoryLog

logger = logging.getLogger(__name__)

RESTARTS = 2
"""How often one call starts engines anew. What kills an engine more often than that does so every time."""


class JudgeEngines:
    """The actors (Ray handles of JudgeEngine), each at its place. `start(place)` begins one."""

    def __init__(self, start: Callable[[int], Any], count: int) -> None:
        self._start = start
        self._actors: list[Any] = [start(place) for place in range(count)]

    def __len__(self) -> int:
        return len(self._actors)

    def __getitem__(self, place: int) -> Any:
        return self._actors[place]

    def ready(self) -> list[ray.ObjectRef]:
        return [actor.__ray_ready__.remote() for actor in self._actors]

    def sleep(self) -> None:
        """One that has died is noticed when it is asked."""
        outcomes([actor.sleep.remote() for actor in self._actors], "the judge to leave the GPU")

    def wake(self) -> None:
        outcomes([actor.wake.remote() for actor in self._actors], "the judge to return to the GPU")

    def renew(self, places: Sequence[int]) -> list[int]:
        """Start engines anew at these places; those at which none could be started."""
        for place in places:
            ray.kill(self._actors[place])  # its memory must be free before another takes it
            self._actors[place] = self._start(place)
        ready = outcomes(
            [self._actors[place].__ray_ready__.remote() for place in places],
            f"{len(places)} engines of the judge to start again",
        )
        return [place for place, outcome in zip(places, ready, strict=True) if isinstance(outcome, Death)]


class RemoteJudge:
    """`LanguageModel` over one or more engines, asked in SCORE. Threads may share it; one is answered at a time.

    Questions go round the engines; the answers do not depend on who gets which. An engine that dies is started
    again and its questions, those alone, are asked once more; after `RESTARTS` such rounds they have no reply.
    """

    def __init__(self, name: str, engines: JudgeEngines, phases: Phases, memory: MemoryLog | None = None) -> None:
        self.engines = engines
        self._name = name
        self._phases = phases
        self._memory = memory or MemoryLog()
        self._asking = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._name

    def reply(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        if not questions:
            return []
        with self._asking:
            self._phases.enter("score")
            return self._reply(questions)

    def take_counts(self) -> Mapping[str, int]:
        """Since the last call: `restarts` of engines, where there were any."""
        counts, self._counts = self._counts, Counter()
        return counts

    def _reply(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        answers: dict[int, Reply | NoReply] = {}
        places = list(range(len(self.engines)))
        for round_number in range(RESTARTS + 1):
            left = [index for index in range(len(questions)) if index not in answers]
            parts = {place: left[start :: len(places)] for start, place in enumerate(places)}
            lost = self._ask({place: part for place, part in parts.items() if part}, questions, answers)
            if not lost:
                break
            reason = next(iter(lost.values()))
            logger.warning("%d of the judge's %d engines died (%s).", len(lost), len(self.engines), reason)
            if round_number == RESTARTS:
                break
            self._counts["restarts"] += len(lost)
            gone = self.engines.renew(list(lost))
            places = [place for place in range(len(self.engines)) if place not in gone]
            if not places:
                break
        detail = "the judge's engine died each time that it was asked"
        return [answers.get(index) or NoReply("crashed", detail) for index in range(len(questions))]

    def _ask(
        self, parts: Mapping[int, Sequence[int]], questions: Sequence[Question], answers: dict[int, Reply | NoReply]
    ) -> dict[int, str]:
        """Ask each engine its part and add to the answers; which engines died meanwhile, and of what."""
        calls = [
            self.engines[place].reply.remote([questions[i] for i in part], tell_answers)
            for place, part in parts.items()
        ]
        # Asked for in the same breath: they come with the answers.
        peaks = [self.engines[place].take_peaks.remote() for place in parts]
        count = sum(len(part) for part in parts.values())
        replies = outcomes(calls, f"{count} answers of the judge")
        for measured in outcomes(peaks, "the judge's memory"):
            if not isinstance(measured, Death):
                self._memory.note("judge", measured)
        lost = {}
        for (place, part), reply in zip(parts.items(), replies, strict=True):
            if isinstance(reply, Death):
                lost[place] = reply.reason
            else:
                answers.update(zip(part, reply, strict=True))
        return lost


def tell_answers(done: int, total: int) -> None:
    """How far an engine is; said in its own process, whose output Ray hands on to the user."""
    if done < total:
        print(f"{done} of {total} answers of the judge", flush=True)
