"""What a run leaves behind, and when: metrics, evaluations, checkpoints, the line the user watches.

Both loops end every step with `Journal.end_step`. Its order is: evaluate, log, save. A checkpoint of step k
therefore finds all that step k has to say already written, and a run killed between the two logs it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from openrlhf_ext.ports import Tracker
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.types import Metric, Report, merge_reports

Evaluate = Callable[[], Mapping[str, float]]


class StepLine(Protocol):
    """The line the user watches (`track.progress.StepProgress`)."""

    def update(self, step: int, values: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every how many steps to log, evaluate and save; the last step always does all three, and 0 is the last step only.

    `best` names the evaluation metric whose best value marks the checkpoint to keep: the first metric in
    alphabetical order that is, or ends with, this name. An evaluation that beats all before is saved at once.
    """

    log: int = 1
    evaluate: int = 0
    save: int = 0
    best: str | None = None
    best_is_lowest: bool = False

    def __post_init__(self) -> None:
        assert min(self.log, self.evaluate, self.save) >= 0, "a cadence is a number of steps"


class Journal:
    """Keeps the record of one run. Without `store` nothing is saved, without `evaluate` no evaluation runs.

    `gauges` says what else there is to log of the time since it was last asked (memory, say). `stop` says whether the
    run is to end early; the step that it is asked in is saved. It is asked once in every step.
    """

    def __init__(
        self,
        cadence: Cadence,
        *,
        tracker: Tracker,
        line: StepLine,
        store: CheckpointStore | None,
        evaluate: Evaluate | None = None,
        gauges: Callable[[], Report] = dict,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.clock = PhaseClock()
        self._cadence = cadence
        self._tracker = tracker
        self._line = line
        self._store = store
        self._evaluate = evaluate
        self._gauges = gauges
        self._stop = stop
        self.stopped = False
        self._best: float | None = None
        self._pending: list[Report] = []

    def begin(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Start anew (step 0: evaluates once, so that there is a before) or after a checkpoint with this state."""
        if state is not None:
            self._best = state["best"]
            self.clock.take()  # loading belongs to no step
            return
        evaluated = self._run_evaluation(step)
        self._best = self._score(evaluated)
        report = self.clock.take()
        if evaluated:
            self._tracker.log(step, _values(merge_reports([report, self._gauges()])) | evaluated)

    def note(self, text: str) -> None:
        """Tell the user something that a figure alone would hide."""
        self._line.note(text)

    def end_step(
        self,
        step: int,
        report: Report,
        *,
        last: bool,
        tokens: Mapping[str, float],
        write: Callable[[Path], None],
        state: Callable[[], Mapping[str, Any]],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Log the step; evaluate and save where it is time. `stopped` tells afterwards whether to end here.

        `tokens` are counted by phase; `write(folder)` saves the roles and `state()` is what the loop needs to go on.
        `settle()` is called before an evaluation or a checkpoint: nothing else may be at work then.
        """
        evaluating = last or _due(step, self._cadence.evaluate)
        self.stopped = self._stop() and not last
        saving = last or self.stopped or _due(step, self._cadence.save)
        if evaluating or saving:
            settle()
        evaluated = self._run_evaluation(step) if evaluating else {}
        score = self._score(evaluated)
        improved = score is not None and (self._best is None or score > self._best)
        self._best = score if improved else self._best
        report = merge_reports([report, self.clock.take(tokens), self._gauges()])
        self._line.update(step, _values(report) | evaluated)
        self._pending.append(report)
        saving = saving or improved
        if saving or evaluated or _due(step, self._cadence.log):
            self._tracker.log(step, _values(merge_reports(self._pending)) | evaluated)
            self._pending = []
        if saving and self._store is not None:
            with self.clock("save"):
                self._store.save(step, write, {**state(), "best": self._best}, metric=score)

    def _run_evaluation(self, step: int) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        with self.clock("evaluate"):
            evaluated = dict(self._evaluate())
        figures = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in evaluated.items())
        self._line.note(f"evaluation after step {step}: {figures}")
        return evaluated

    def _score(self, evaluated: Mapping[str, float]) -> float | None:
        """The evaluation as one number of which more is better."""
        name = self._cadence.best
        if name is None:
            return None
        for key in sorted(evaluated):
            if (key == name or key.endswith("/" + name)) and math.isfinite(evaluated[key]):
                return -evaluated[key] if self._cadence.best_is_lowest else evaluated[key]
        return None


def _values(report: Mapping[str, Metric]) -> dict[str, float]:
    return {name: metric.value for name, metric in report.items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
