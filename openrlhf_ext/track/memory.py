"""Predicted against measured peaks of memory, by role and phase: every run tests the planner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from openrlhf_ext.device.peaks import Peak, PeakMeter
from openrlhf_ext.types import Metric, Report


class Moment(NamedTuple):
    """Whose memory, and when: names of the planner's."""

    role: str
    phase: str


@dataclass(frozen=True, slots=True)
class Predicted:
    """Bytes of one process of a role in a phase: on its GPU, and on the host."""

    gpu: int
    host: int


class MemoryLog:
    """Collects what processes measured of themselves; any thread may bring it."""

    def __init__(self, predicted: Mapping[Moment, Predicted] | None = None) -> None:
        self._predicted = dict(predicted or {})
        self._most: dict[Moment, Peak] = {}
        self._new: dict[Moment, Peak] = {}
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, role: str, peaks: Mapping[str, Peak]) -> None:
        """The peaks by phase of one process of the role."""
        with self._lock:
            for phase, peak in peaks.items():
                at = Moment(role, phase)
                self._new[at] = peak.most(self._new.get(at, peak))
                self._most[at] = peak.most(self._most.get(at, peak))

    def take(self) -> Report:
        """What was noted since the last take, in GB, where it is not what was told before (to the megabyte).

        `memory/<role>/<phase>/measured_gb` and `predicted_gb` are of the GPU where the role uses one, and then
        `reserved_gb` is what its allocator kept, and `host_measured_gb` and `host_predicted_gb` are of the host.
        """
        with self._lock:
            new, self._new = self._new, {}
        figures = {
            f"memory/{at.role}/{at.phase}/{name}": value
            for at, peak in new.items()
            for name, value in self._figures(at, peak).items()
        }
        changed = {name: value for name, value in figures.items() if self._told.get(name) != value}
        self._told |= changed
        return {name: Metric(value, reduction="max") for name, value in changed.items()}

    def measuring(self, role: str, meter: PeakMeter) -> Callable[[str], AbstractContextManager[None]]:
        """Blocks that this process measures itself in and notes, each called with its phase."""

        @contextmanager
        def measured(phase: str) -> Iterator[None]:
            with meter(phase):
                yield
            self.note(role, meter.take())

        return measured

    def figures(self) -> dict[Moment, dict[str, float]]:
        """The most of the whole run, in the order in which moments came up, under the names that `take` gives."""
        return {at: self._figures(at, peak) for at, peak in self.peaks().items()}

    def peaks(self) -> dict[Moment, Peak]:
        """The most of every moment so far."""
        with self._lock:
            return dict(self._most)

    def _figures(self, at: Moment, peak: Peak) -> dict[str, float]:
        predicted = self._predicted.get(at)
        bytes_of: dict[str, int] = {"measured_gb": peak.gpu or peak.host}
        if predicted is not None:
            bytes_of["predicted_gb"] = predicted.gpu if peak.gpu else predicted.host
        if peak.gpu:
            bytes_of |= {"reserved_gb": peak.reserved, "host_measured_gb": peak.host}
            if predicted is not None:
                bytes_of["host_predicted_gb"] = predicted.host
        return {name: round(value / 1e9, 3) for name, value in bytes_of.items()}
