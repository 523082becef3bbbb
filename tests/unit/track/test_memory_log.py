"""Predicted and measured peaks as metrics: told where they changed, the most of them kept."""

from __future__ import annotations

from openrlhf_ext.device.peaks import Peak
from openrlhf_ext.track.memory import MemoryLog, Moment, Predicted
from openrlhf_ext.types import Metric

TRAIN = Moment("policy", "train")


def told(log: MemoryLog) -> dict[str, float]:
    report = log.take()
    assert all(metric.reduction == "max" for metric in report.values())
    return {name: metric.value for name, metric in report.items()}


def test_a_figure_is_told_once_until_it_changes():
    log = MemoryLog({TRAIN: Predicted(0, 3_000_000_000)})
    assert told(log) == {}
    log.note("policy", {"train": Peak(0, 0, 2_000_000_000)})
    log.note("policy", {"train": Peak(0, 0, 2_500_000_000)})  # another rank
    assert told(log) == {"memory/policy/train/measured_gb": 2.5, "memory/policy/train/predicted_gb": 3.0}
    log.note("policy", {"train": Peak(0, 0, 2_500_000_400)})
    assert told(log) == {}, "the same to the megabyte"
    log.note("policy", {"train": Peak(0, 0, 1_250_000_000)})
    assert told(log) == {"memory/policy/train/measured_gb": 1.25}
    assert told(log) == {}
    assert log.figures() == {TRAIN: {"measured_gb": 2.5, "predicted_gb": 3.0}}, "of the whole run"


def test_a_gpu_has_figures_of_its_own_and_the_host():
    log = MemoryLog({TRAIN: Predicted(30_000_000_000, 5_000_000_000)})
    log.note("policy", {"train": Peak(31_000_000_000, 33_000_000_000, 4_000_000_000)})
    assert told(log) == {
        "memory/policy/train/measured_gb": 31.0,
        "memory/policy/train/predicted_gb": 30.0,
        "memory/policy/train/reserved_gb": 33.0,
        "memory/policy/train/host_measured_gb": 4.0,
        "memory/policy/train/host_predicted_gb": 5.0,
    }


def test_without_a_plan_there_is_what_was_measured():
    log = MemoryLog()
    log.note("engines", {"load": Peak(0, 0, 1_000_000_000), "generate": Peak(0, 0, 2_000_000_000)})
    assert log.take() == {
        "memory/engines/load/measured_gb": Metric(1.0, reduction="max"),
        "memory/engines/generate/measured_gb": Metric(2.0, reduction="max"),
    }
    assert list(log.peaks()) == [Moment("engines", "load"), Moment("engines", "generate")]
