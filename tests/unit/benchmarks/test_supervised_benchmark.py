"""What benchmarks/supervised.py does with its measurements, and that both sides are given the same rows."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
from test_rl_step_benchmark import BENCHMARKS, load

MIB = 2**20


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load("supervised", monkeypatch)


def turns(benchmark: ModuleType, *seconds: float, peak: int, others: float = 0.0) -> object:
    from measure import Load, Turn

    memories = [SimpleNamespace(libraries=100 * MIB, peak=(peak - i) * MIB) for i in range(len(seconds))]
    kept = [Turn(value, {"train": value}, details=memory) for value, memory in zip(seconds, memories, strict=True)]
    return benchmark.Turns(kept, [Load(others, own=2 * value) for value in seconds])


def test_ratios_are_of_medians_and_of_the_largest_peak(benchmark: ModuleType) -> None:
    sides = {
        "ours": turns(benchmark, 1.0, 2.0, 9.0, peak=150),
        "trl": turns(benchmark, 4.0, 4.0, 5.0, peak=300),
        "trl grouped": turns(benchmark, 1.0, peak=120),
    }
    result = benchmark.summary(sides, tokens=800)
    assert result["sides"]["ours"]["tokens_per_second"] == 400.0
    assert result["sides"]["ours"]["peak"] == 150 * MIB
    assert result["sides"]["ours"]["core_seconds"] == 4.0
    assert result["ratios"]["trl"] == {"tokens_per_second": 2.0, "peak": 0.5, "peak_above_libraries": 0.25}
    assert result["ratios"]["trl grouped"]["tokens_per_second"] == 0.5
    lines = benchmark.remarks(result)
    assert [line.count("met") for line in lines] == [2, 0], "the aims are for TRL as it comes"
    assert not any("quiet" in line for line in lines)


def test_a_missed_aim_and_a_busy_machine_are_told(benchmark: ModuleType) -> None:
    sides = {"ours": turns(benchmark, 1.0, peak=300, others=0.5), "trl": turns(benchmark, 1.4, peak=200)}
    lines = benchmark.remarks(benchmark.summary(sides, tokens=1))
    assert lines[0].count("missed") == 2
    assert "not quiet" in lines[1]


def test_a_phase_of_one_side_is_left_empty_for_the_other(benchmark: ModuleType) -> None:
    from measure import Turn

    sides = {"ours": turns(benchmark, 1.0, peak=150), "trl": turns(benchmark, 1.0, peak=150)}
    sides["ours"].kept[0] = Turn(1.0, {"reference": 0.25, "train": 0.75}, details=sides["ours"].kept[0].details)
    shown = benchmark.table(benchmark.summary(sides, tokens=1))
    assert [list(column.cells)[-2] for column in shown.columns] == ["reference, seconds", "0.25", ""]


def test_both_sides_are_given_the_same_tokens(benchmark: ModuleType) -> None:
    from sides.supervised_rows import lengths_of
    from sides.supervised_trl import row_of

    text = {"tokens": [5, 6, 7, 8], "prompt": 2}
    assert row_of("sft", text) == {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "length": 4}
    pair = {"prompt": [1, 2], "chosen": [3], "rejected": [4, 5, 6]}
    assert lengths_of(pair) == (3, 5)
    assert row_of("rm", pair) == {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5, 6], "length": 5}
    of_dpo = row_of("dpo", pair)
    assert [of_dpo[f"{name}_ids"] for name in pair] == list(pair.values())
