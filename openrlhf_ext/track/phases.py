"""Where the seconds of a step go: one named phase at a time, in each thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from openrlhf_ext.types import Metric


class _Running(threading.local):
    """The phase that this thread is in, and the tokens counted in it."""

    phase: str | None = None
    tokens: float = 0.0


class PhaseClock:
    """Seconds by phase. Phases of one name add up; a phase inside another of the same thread is a mistake.

    The thread that makes the clock runs the steps: phases of other threads go on beside its own.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._running = _Running()
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, float] = {}
        self._step = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        running = self._running
        assert running.phase is None, f"phase {phase} inside phase {running.phase}"
        running.phase, running.tokens, start = phase, 0.0, self._now()
        try:
            yield
        finally:
            running.phase = None
            spent = self._now() - start
            with self._lock:
                self._seconds[phase] = self._seconds.get(phase, 0.0) + spent
                if running.tokens:
                    self._tokens[phase] = self._tokens.get(phase, 0.0) + running.tokens
                self._step += spent if threading.get_ident() == self._owner else 0.0

    def count(self, tokens: float) -> None:
        """So many tokens were worked on in the phase that runs."""
        assert self._running.phase is not None, "tokens are counted inside a phase"
        self._running.tokens += tokens

    def take(self, tokens: Mapping[str, float] | None = None) -> dict[str, Metric]:
        """The seconds since the last take, as `seconds/<phase>`, and `seconds/step`, the sum of the owner's phases.

        Tokens that a phase worked on, counted in it or given here, add `tokens_per_second/<phase>`.
        """
        with self._lock:
            seconds, counted, step = self._seconds, self._tokens, self._step
            self._seconds, self._tokens, self._step = {}, {}, 0.0
        report = {f"seconds/{phase}": Metric(spent, 1.0, "sum") for phase, spent in seconds.items()}
        report["seconds/step"] = Metric(step, 1.0, "sum")
        for phase, count in (counted | dict(tokens or {})).items():
            if seconds.get(phase, 0.0) > 0.0:
                report[f"tokens_per_second/{phase}"] = Metric(count, seconds[phase], "mean")
        return report
