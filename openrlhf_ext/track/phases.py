"""Where the seconds of a step go: one named phase at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from openrlhf_ext.types import Metric


class PhaseClock:
    """Seconds by phase. Phases of one name add up; a phase inside another is a mistake."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._running: str | None = None
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        assert self._running is None, f"phase {phase} inside phase {self._running}"
        self._running, start = phase, self._now()
        try:
            yield
        finally:
            self._running = None
            self._seconds[phase] = self._seconds.get(phase, 0.0) + self._now() - start

    def take(self, tokens: Mapping[str, float] | None = None) -> dict[str, Metric]:
        """The seconds since the last take, as `seconds/<phase>`, and `seconds/step`, their sum.

        `tokens` says how many tokens a phase worked on: it adds `tokens_per_second/<phase>`.
        """
        seconds, self._seconds = self._seconds, {}
        report = {f"seconds/{phase}": Metric(spent, 1.0, "sum") for phase, spent in seconds.items()}
        report["seconds/step"] = Metric(sum(seconds.values()), 1.0, "sum")
        for phase, count in (tokens or {}).items():
            if seconds.get(phase, 0.0) > 0.0:
                report[f"tokens_per_second/{phase}"] = Metric(count, seconds[phase], "mean")
        return report
