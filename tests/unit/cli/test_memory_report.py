"""The plan held against what was measured, and the one report of a run that ran out of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_ext.cli.memory_report import as_result, gauges_of_driver, memory_log, say_peaks, shortage_explained
from openrlhf_ext.cli.preflight import Preflight
from openrlhf_ext.config import parse
from openrlhf_ext.device import Device
from openrlhf_ext.device.peaks import Peak
from openrlhf_ext.errors import DataError, OutOfMemory, ResourceError, Shortage
from openrlhf_ext.plan.cards import card_of_size
from openrlhf_ext.plan.make import make_plan
from openrlhf_ext.plan.predicted import NOT_TENSORS, NOT_THE_DRIVER, predicted
from openrlhf_ext.plan.types import DataSize, Hardware
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.memory import MemoryLog

RL = (
    "--actor.model_name_or_path Qwen/Qwen3-0.6B --data.prompt_dataset d --reward.remote_url r.py --data.max_len 512 "
    "--actor.num_gpus_per_node 2 --ref.num_gpus_per_node 2 --vllm.num_engines 2 --train.micro_batch_size 2 "
    "--algo.advantage.estimator reinforce"
)
DATA = DataSize(100, 300.0, 512, 100.0, how="counted")
LACK = Shortage("policy", "train", "CUDA out of memory. Tried to allocate 2.00 GiB", 11_000_000_000, 10**9, 12 * 10**9)


@pytest.fixture(params=[None, 24.0], ids=["CPU", "GPU"])
def planned(request: pytest.FixtureRequest) -> Preflight:
    parsed = parse("rl", RL.split(), planning=True)
    card = card_of_size(request.param) if request.param else None
    hardware = Hardware(card, 6 if card else 0, 1, 10**12)
    return Preflight(parsed, make_plan("rl", parsed.config, parsed.explicit, hardware, DATA))


def test_what_is_said_of_processes_adds_up_to_what_is_said_of_the_machine(planned: Preflight):
    plan = planned.plan
    assert plan is not None
    processes = {"policy": 2, "reference": 2, "engines": 2, "driver": 1}
    of_process = predicted(plan)
    for peak in plan.memory.peaks:
        here = [term for term in plan.memory.terms if peak.phase in term.phases]
        other = [t for t in here if t.role == "driver" and t.name in NOT_THE_DRIVER]
        host = sum(count * of_process[role, peak.phase][1] for role, count in processes.items())
        assert host + sum(term.bytes for term in other) == pytest.approx(peak.host_bytes, abs=10)
        roles = {term.role for term in here if term.where == "gpu" and term.pool == peak.pool}
        outside = sum(t.bytes for t in here if t.where == "gpu" and t.pool == peak.pool and t.name in NOT_TENSORS)
        assert sum(of_process[role, peak.phase][0] for role in roles) + outside == peak.gpu_bytes


def test_two_models_in_one_process_are_one_sum():
    flags = (
        "--model.model_name_or_path Qwen/Qwen3-0.6B --data.dataset d --ref.strategy model --train.micro_batch_size 1"
    )
    parsed = parse("dpo", flags.split(), planning=True)
    plan = make_plan("dpo", parsed.config, parsed.explicit, Hardware(None, 0, 1, 10**12), DATA)
    assert [run.role for run in plan.setup.models] == ["model", "reference"]
    found = predicted(plan)
    assert found["model", "train"] == found["reference", "train"]
    (peak,) = [peak for peak in plan.memory.peaks if peak.phase == "train"]
    assert found["model", "train"] == (0, peak.host_bytes)


def test_the_log_knows_what_was_said(planned: Preflight):
    log = memory_log(planned)
    gpu = 10**9 if planned.plan.setup.hardware.on_gpu else 0
    log.note("policy", {"train": Peak(gpu, gpu, 2 * 10**9)})
    figures = as_result(log)["policy"]["train"]
    said = predicted(planned.plan)["policy", "train"]
    assert figures["predicted_gb"] == pytest.approx(said[0 if gpu else 1] / 1e9, abs=1e-3)
    assert figures["measured_gb"] == (1.0 if gpu else 2.0)
    assert memory_log(Preflight(planned.parsed, None)).take() == {}


def test_the_driver_is_measured_from_step_to_step(planned: Preflight):
    report = gauges_of_driver(memory_log(planned), Device("cpu", 0, frozenset()))()
    assert set(report) == {"memory/driver/step/measured_gb", "memory/driver/step/predicted_gb"}
    assert 0.1 < report["memory/driver/step/measured_gb"].value < 20


def test_the_table(planned: Preflight, capsys: pytest.CaptureFixture):
    log = memory_log(planned)
    gpu = 10**9 if planned.plan.setup.hardware.on_gpu else 0
    log.note("policy", {"train": Peak(gpu, gpu, 2 * 10**9)})
    log.note("nobody", {"load": Peak(0, 0, 10**9, sampled=True)})
    say_peaks(log)
    told = capsys.readouterr().err
    assert "(of the host as it was when each phase ended)" in told
    lines = [line.split() for line in told.splitlines()]
    predicted_gb = as_result(log)["policy"]["train"]["predicted_gb"]
    (train,) = [line for line in lines if line[:2] == ["policy", "train"]]
    measured = 1.0 if gpu else 2.0
    assert train[-3:] == [f"{predicted_gb:.2f}", f"{measured:.2f}", f"{(predicted_gb - measured) / measured:+.0%}"]
    assert ["nobody", "load"] in [line[:2] for line in lines]


def test_the_report_has_all_that_is_needed(planned: Preflight, tmp_path: Path):
    log, store = memory_log(planned), CheckpointStore(tmp_path / "checkpoints")
    log.note("policy", {"load": Peak(0, 0, 3 * 10**9)})
    store.save(4, lambda folder: None, {})
    with pytest.raises(ResourceError) as caught:
        with shortage_explained(planned, log, store):
            raise OutOfMemory(LACK)
    told = str(caught.value).splitlines()
    assert told[0] == (
        "Out of memory in phase train of the policy (CUDA out of memory. Tried to allocate 2.00 GiB); it held at most "
        "11.00 GB, 1.00 of 12.00 GB were free."
    )
    assert told[1] == "Peaks measured before, GB of a process: policy load 3.00."
    assert told[2].startswith("What the plan says of train")
    terms = [line for line in told if line.startswith("  ")]
    assert any(line.endswith("policy optimizer") for line in terms)
    assert not any("engines" in line for line in terms)
    assert told[-2].startswith("The cheapest change: --") and "saves" in told[-2]
    assert told[-1].startswith("The checkpoint of step 4 is safe in") and "--ckpt.load_enable" in told[-1]


def test_without_a_plan_or_a_checkpoint_it_is_what_there_is():
    parsed = parse("rl", RL.split(), planning=True)
    with pytest.raises(ResourceError) as caught:
        with shortage_explained(Preflight(parsed, None), MemoryLog(), None):
            raise OutOfMemory(Shortage("models", "load", "the kernel killed a process"))
    assert str(caught.value).splitlines() == [
        "Out of memory in phase load of the models (the kernel killed a process).",
        "No checkpoint had been written.",
    ]


def test_other_errors_pass():
    parsed = parse("rl", RL.split(), planning=True)
    with pytest.raises(DataError, match="no such row"):
        with shortage_explained(Preflight(parsed, None), MemoryLog(), None):
            raise DataError("no such row")
