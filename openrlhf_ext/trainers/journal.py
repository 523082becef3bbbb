"""What a run leaves behind, and when: metrics, evaluations, checkpoints, the line the user watches.

Both loops end every step with `Journal.end_step`. Its order is: evaluate, log, save. A checkpoint of step k
therefore finds all that step k has to say already written, and a run killed between the two logs it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from openrlhf_ext.condition import Condition, Reached, find_metric
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.ports import Tracker
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.types import Metric, Report, merge_reports

Evaluate = Callable[[int], Mapping[str, float]]
"""Held-out figures after this step."""
SAID = 16
"""Figures of an evaluation in its line; groups and subjects may be hundreds."""
GOAL = "stop_when/reached"
"""Beside the figures of an evaluation, where there is a goal: 1 if it is reached, else 0."""


class StepLine(Protocol):
    """The line the user watches (`track.progress.StepProgress`)."""

    def update(self, step: int, values: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every how many steps to log, evaluate and save; the last step always does all three, and 0 is the last step only.

    `best` names the evaluation metric (as `condition.find_metric` understands names) whose best value marks the
    checkpoint to keep. An evaluation that beats all before is saved at once.
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
    run is to end early; the step that it is asked in is saved. It is asked once in every step. `until` is
    the run's goal: it ends with the evaluation in which this holds, and `reached` tells of it.
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
        until: Condition | None = None,
    ) -> None:
        self.clock = PhaseClock()
        self._cadence = cadence
        self._tracker = tracker
        self._line = line
        self._store = store
        self._evaluate = evaluate
        self._gauges = gauges
        self._stop = stop
        self._until = until
        self._asked_to_stop = False
        self.reached: Reached | None = None
        self._best: float | None = None
        self._pending: list[Report] = []

    @property
    def stopped(self) -> bool:
        """Whether to end here: the run was asked to, or has reached what it is for."""
        return self._asked_to_stop or self.reached is not None

    def begin(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Start anew (step 0: evaluates once, so that there is a before) or after a checkpoint with this state.

        Raises ConfigError where `until` is of a figure that evaluations do not have.
        """
        if state is not None:
            self._best = state["best"]
            self._look_for_goal(step, state.get("evaluated", {}))
            self.clock.take()  # loading belongs to no step
            return
        evaluated = self._run_evaluation(step)
        self._best = self._score(evaluated)
        report = self.clock.take()
        if evaluated:
            self._look_for_goal(step, evaluated)
            self._log(step, [report, self._gauges()], evaluated)

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
        self._asked_to_stop = self._stop() and not last
        saving = last or self._asked_to_stop or _due(step, self._cadence.save)
        if evaluating or saving:
            settle()
        evaluated = self._run_evaluation(step) if evaluating else {}
        self._look_for_goal(step, evaluated)
        score = self._score(evaluated)
        improved = score is not None and (self._best is None or score > self._best)
        self._best = score if improved else self._best
        report = merge_reports([report, self.clock.take(tokens), self._gauges()])
        self._line.update(step, _values(report) | evaluated)
        self._pending.append(report)
        saving = saving or improved or self.stopped
        if saving or evaluated or _due(step, self._cadence.log):
            self._log(step, self._pending, evaluated)
            self._pending = []
        if saving and self._store is not None:
            with self.clock("save"):
                kept = {**state(), "best": self._best, "evaluated": evaluated}
                self._store.save(step, write, kept, metric=score)

    def _log(self, step: int, reports: Sequence[Report], evaluated: Mapping[str, float]) -> None:
        goal = {} if self._until is None or not evaluated else {GOAL: float(self.reached is not None)}
        self._tracker.log(step, {**_values(merge_reports(reports)), **evaluated, **goal})

    def _run_evaluation(self, step: int) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        with self.clock("evaluate"):
            evaluated = dict(self._evaluate(step))
        figures = [f"{name.removeprefix('eval/')} {value:.4g}" for name, value in evaluated.items()]
        more = f", and {len(figures) - SAID} figures more" if len(figures) > SAID else ""
        self._line.note(f"evaluation after step {step}: {', '.join(figures[:SAID])}{more}")
        return evaluated

    def _look_for_goal(self, step: int, evaluated: Mapping[str, float]) -> None:
        """Whether an evaluation (empty: there was none) is what the run goes on until; says so where it is."""
        until = self._until
        if until is None or not evaluated:
            return
        metric = find_metric(until.metric, evaluated)
        if metric is None:
            raise ConfigError(
                f"--train.stop_when {until}: no evaluation has a figure of this name; there are {', '.join(evaluated)}."
            )
        value = evaluated[metric]
        if until.holds(value):
            self.reached = Reached(metric, value, step)
            self._line.note(f"--train.stop_when {until} is reached: {metric} is {value:.4g} after step {step}")

    def _score(self, evaluated: Mapping[str, float]) -> float | None:
        """The evaluation as one number of which more is better."""
        if self._cadence.best is None:
            return None
        metric = find_metric(self._cadence.best, [name for name, value in evaluated.items() if math.isfinite(value)])
        if metric is None:
            return None
        return -evaluated[metric] if self._cadence.best_is_lowest else evaluated[metric]


def _values(report: Mapping[str, Metric]) -> dict[str, float]:
    return {name: metric.value for name, metric in report.items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
