from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.metrics import JsonlTracker, read_metrics
from openrlhf_ext.track.progress import StepProgress
from openrlhf_ext.trainers.journal import Cadence, Journal
from openrlhf_ext.types import Metric


class Scripted:
    """An evaluation that gives these values one after the other."""

    def __init__(self, *values: float) -> None:
        self._values = iter(values)

    def __call__(self, step: int) -> Mapping[str, float]:
        return {"eval/gsm/pass@1": next(self._values), "eval/gsm/reward": 0.0}


def run(
    folder: Path, evaluate: Scripted | None, cadence: Cadence, steps: range, store: CheckpointStore | None = None
) -> CheckpointStore:
    """Go through `steps` of a run of six, after the latest checkpoint where `steps` do not start at 1."""
    store = store or CheckpointStore(folder / "ckpt", max_num=9)
    latest = store.latest() if steps.start > 1 else None
    tracker = JsonlTracker(folder / "metrics.jsonl", latest.step if latest else None)
    line = StepProgress(6, {})
    journal = Journal(cadence, tracker=tracker, line=line, store=store, evaluate=evaluate)
    journal.begin(steps.start - 1, latest.state if latest else None)
    for step in steps:
        report = {"reward": Metric(float(step))}
        state = {"position": step}
        journal.end_step(
            step, report, last=step == 6, tokens={}, write=lambda folder: None, state=lambda state=state: state
        )
    tracker.close()
    return store


def saved(store: CheckpointStore) -> list[int]:
    return [found.step for found in store.checkpoints()]


def test_a_better_evaluation_is_saved_at_once_and_an_equal_one_is_not(tmp_path: Path) -> None:
    cadence = Cadence(evaluate=1, best="pass@1")
    store = run(tmp_path, Scripted(0.3, 0.2, 0.4, 0.4, 0.5, 0.1, 0.5), cadence, range(1, 7))
    assert saved(store) == [2, 4, 6]  # 6 is the end
    assert store.best().step == 4  # type: ignore[union-attr]


def test_a_resumed_run_remembers_the_best_so_far(tmp_path: Path) -> None:
    cadence = Cadence(evaluate=1, save=3, best="pass@1")
    run(tmp_path, Scripted(0.3, 0.9, 0.2, 0.2), cadence, range(1, 4))
    store = run(tmp_path, Scripted(0.8, 0.95, 0.1), cadence, range(4, 7))
    assert saved(store) == [1, 3, 5, 6]


@pytest.mark.parametrize(("best", "expected"), [(None, [6]), ("eval/gsm/pass@1", [1, 6]), ("reward", [6])])
def test_the_best_is_the_metric_that_was_named(tmp_path: Path, best: str | None, expected: list[int]) -> None:
    values = Scripted(0.1, *[0.2] * 6)
    assert saved(run(tmp_path, values, Cadence(evaluate=1, best=best), range(1, 7))) == expected


def test_an_evaluation_without_a_value_is_never_the_best(tmp_path: Path) -> None:
    values = Scripted(0.1, float("nan"), *[0.1] * 5)
    assert saved(run(tmp_path, values, Cadence(evaluate=1, best="pass@1"), range(1, 7))) == [6]


def test_a_checkpoint_finds_its_step_already_logged(tmp_path: Path) -> None:
    class Watched(CheckpointStore):
        def save(self, step, write, state, metric=None):  # type: ignore[no-untyped-def]
            assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == step
            return super().save(step, write, state, metric)

    store = Watched(tmp_path / "ckpt")
    run(tmp_path, None, Cadence(log=4, save=2), range(1, 7), store)
    assert saved(store) == [2, 4, 6]
    lines = [(row["step"], row["reward"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert lines == [(2, 1.5), (4, 3.5), (6, 5.5)]


def test_all_else_rests_before_an_evaluation_and_before_a_checkpoint(tmp_path: Path) -> None:
    happened: list[str] = []

    def evaluate(step: int) -> Mapping[str, float]:
        happened.append("evaluate")
        return {"eval/reward": 0.0}

    journal = Journal(
        Cadence(evaluate=3, save=2),
        tracker=JsonlTracker(tmp_path / "metrics.jsonl", None),
        line=StepProgress(5, {}),
        store=CheckpointStore(tmp_path / "ckpt"),
        evaluate=evaluate,
    )
    journal.begin(0, None)
    for step in range(1, 6):
        happened.append(f"step {step}")
        journal.end_step(
            step,
            {},
            last=step == 5,
            tokens={},
            settle=lambda: happened.append("settle"),
            write=lambda folder: happened.append("write"),
            state=dict,
        )
    assert " ".join(happened) == (
        "evaluate step 1 step 2 settle write step 3 settle evaluate step 4 settle write step 5 settle evaluate write"
    )
