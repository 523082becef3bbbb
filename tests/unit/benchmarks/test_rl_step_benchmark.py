"""What the benchmark does with its measurements; the measurements themselves need a quiet machine."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses and its siblings look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("measure", monkeypatch)


@pytest.fixture
def report(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("report", monkeypatch)


def test_a_disturbed_turn_is_played_again(measure: ModuleType) -> None:
    busy = iter([0.0, 0.9, 0.05, 0.0, 0.0])
    played = []

    def play(side: str) -> tuple[object, float]:
        played.append(side)
        return measure.Turn(float(len(played)), {}), measure.Load(next(busy), idle=0.5)

    turns = measure.take_turns(play, ["ours", "trl"], 2, repeats=5)
    assert played == ["ours", "trl", "trl", "ours", "trl"], "in turn, and the disturbed one again at once"
    assert [turn.seconds for turn in turns["trl"].kept] == [3.0, 5.0]
    assert (turns["trl"].discarded, turns["trl"].disturbed) == (1, 0)
    assert turns["ours"].seconds() == 2.5


def test_repeats_are_bounded_and_the_rest_is_told(measure: ModuleType) -> None:
    turns = measure.take_turns(lambda side: (measure.Turn(1.0, {}), measure.Load(1.0)), ["ours"], 3, repeats=2)
    assert (len(turns["ours"].kept), turns["ours"].discarded, turns["ours"].disturbed) == (3, 2, 3)


def test_others_are_none_of_the_benchmark(measure: ModuleType) -> None:
    before, after = measure.Stopwatch(10.0, 100.0, 7.0, 2.0), measure.Stopwatch(14.0, 106.0, 11.0, 5.0)
    load = before.load(after)
    assert load.others == pytest.approx((6.0 - 4.0) / 4.0)
    assert load.idle == pytest.approx((4.0 - 3.0) / 4.0)


def test_the_cpu_time_of_a_process_counts_as_its_own(measure: ModuleType) -> None:
    before = measure.tree_seconds(os.getpid())
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert measure.tree_seconds(os.getpid()) - before >= 0.03


def turns_of(measure: ModuleType, *seconds: float, busy: float = 0.0) -> object:
    kept = [measure.Turn(value, {"generate": value / 2}, [10, 20]) for value in seconds]
    return measure.Turns(kept, [measure.Load(busy)] * len(kept))


def test_ratios(measure: ModuleType, report: ModuleType) -> None:
    # Each limit belongs to the step of ours in the same round: the ratio of medians would be 4 / 3.
    sides = {
        "ours": turns_of(measure, 1.0, 4.0, 9.0),
        "limit": turns_of(measure, 1.0, 2.0, 9.0),
        "trl": turns_of(measure, 8.0),
    }
    result = report.summary(sides)
    assert result["ratios"] == {"trl_over_ours": 2.0, "ours_over_limit": 1.0}
    assert result["sides"]["ours"]["tokens_per_step"] == 30.0
    lines = report.remarks("natural", result, padded=True)
    assert "missed" in lines[0]
    assert "met" in lines[1]
    assert lines[2] == report.NO_HEADLINE
    assert not any("quiet" in line for line in lines)
    assert report.NO_HEADLINE not in report.remarks("fixed", result, padded=True)


def test_figures_of_a_busy_machine_say_so(measure: ModuleType, report: ModuleType) -> None:
    result = report.summary({"ours": turns_of(measure, 1.0, busy=0.5)})
    assert any("not quiet" in line for line in report.remarks("fixed", result, padded=True))


def test_the_table_has_a_row_for_every_phase(measure: ModuleType, report: ModuleType) -> None:
    kept = [measure.Turn(1.0, {"other": 0.5, "update": 0.5}, [1])]
    result = report.summary({"ours": turns_of(measure, 1.0), "trl": measure.Turns(kept, [measure.Load(0.0)])})
    assert report.phases_in_order(result["sides"]) == ["generate", "update", "other"]
    first = list(report.table("fixed", result).columns[0].cells)
    assert first[:4] == ["generate", "update", "other", "step"]


def test_what_no_phase_covers_is_rest(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from sides.ours import phases_of

    line = {"step": 3, "seconds/generate": 1.0, "seconds/estimate": 0.5, "seconds/step": 1.5, "reward": 0.1}
    assert phases_of(line, 2.0) == {"generate": 1.0, "estimate, split": 0.5, "rest": 0.5}


def test_trl_times_add_up_to_the_step(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from sides.trl_grpo import phases_of

    timed = {"_prepare_inputs": 2.0, "transformers.generate": 1.5, "_calculate_rewards": 0.2, "step": 3.0}
    phases = phases_of(timed, 3.1)
    assert math.isclose(sum(phases.values()), 3.1)
    assert phases["update"] == 1.0
    assert math.isclose(phases["estimate, split"], 0.3)
