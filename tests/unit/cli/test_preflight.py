"""The plan before a run: shown, refused in one sentence, forced, or changed by the planner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_ext.cli import preflight as module
from openrlhf_ext.cli.preflight import Preflight, cheaper, preflight
from openrlhf_ext.config import parse
from openrlhf_ext.device import Device
from openrlhf_ext.device.choose import Gpu
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.types import DataSize

CPU = Device("cpu", 0, frozenset({"bf16"}))
DATA = DataSize(rows=1000, mean_tokens=900.0, max_tokens=2048, how="counted")
SFT = "--model.model_name_or_path Qwen/Qwen3-4B --data.dataset d --train.batch_size 32 --data.max_len 2048"


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch):
    """`plan(flags, gb=...)`: one GPU of so many GB; without, no GPU."""

    def make(flags: str, gb: float | None = None, name: str = "NVIDIA Something", command: str = "sft") -> Preflight:
        device = CPU
        if gb is not None:
            device = Device("cuda", 1, frozenset({"sleep", "ipc", "bf16"}))
            monkeypatch.setattr(module, "visible_gpus", lambda: (Gpu(name, int(gb * 1e9), (9, 0)),))
        return preflight(command, parse(command, flags.split()), device, DATA)

    return make


def test_what_fits_is_said_and_goes_on(plan, capsys: pytest.CaptureFixture):
    made = plan(f"{SFT} --train.micro_batch_size 1", gb=140.0)
    assert made.plan is not None and made.plan.memory.fits
    assert "sft of Qwen/Qwen3-4B on 1 x NVIDIA Something (140.0 GB): fits" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_in_one_sentence(plan):
    with pytest.raises(ConfigError) as caught:
        plan(SFT, gb=24.0)
    told = str(caught.value)
    assert told.startswith("This run does not fit: a GPU of model would hold ")
    assert " GB in train and has 24.0, " in told and " too little; --" in told
    assert told.endswith(" would make it fit, and --plan.force starts it all the same.")
    assert "\n" not in told


def test_force_starts_it_all_the_same(plan, capsys: pytest.CaptureFixture):
    made = plan(f"{SFT} --plan.force", gb=24.0)
    assert made.plan is not None and not made.plan.memory.fits
    assert made.parsed.config.plan.force
    assert "--plan.force: it starts all the same." in capsys.readouterr().err


def test_the_planner_chooses_where_it_may(plan, capsys: pytest.CaptureFixture):
    with pytest.raises(ConfigError, match="does not fit"):
        plan(f"{SFT} --train.micro_batch_size 8", gb=100.0)
    made = plan(f"{SFT} --memory.auto", gb=100.0)
    assert made.plan is not None and made.plan.memory.fits
    config = made.parsed.config
    assert config.train.batch_size == 32, "the effective batch is the one asked for"
    assert config.train.micro_batch_size < 8, "the default"
    assert f"--memory.auto: --train.micro_batch_size {config.train.micro_batch_size}" in capsys.readouterr().err
    assert made.plan.setup.config == config


def test_where_nothing_can_be_chosen_it_says_so(plan, capsys: pytest.CaptureFixture):
    with pytest.raises(ConfigError, match=r"--memory\.auto found nothing that fits"):
        plan(f"{SFT} --memory.auto --ds.zero_stage 2", gb=6.0)
    assert plan(f"{SFT} --memory.auto --plan.force", gb=6.0).plan is not None
    assert "found nothing that fits" in capsys.readouterr().err


def test_a_card_of_the_table_keeps_its_name_and_has_the_memory_of_this_machine(plan):
    made = plan(f"{SFT} --plan.force", gb=84.9, name="NVIDIA A100-SXM4-80GB")
    card = made.plan.setup.hardware.card
    assert card.name == "A100 80GB SXM" and card.bytes == int(84.9e9) and card.flops > 300e12


def test_an_architecture_that_is_not_known_starts_without_a_plan(plan, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv", "hidden_size": 64}))
    made = plan(SFT.replace("Qwen/Qwen3-4B", str(tmp_path)))
    assert made.plan is None
    told = capsys.readouterr().err
    assert told.startswith("There is no plan of this run, which starts all the same: ") and told.count("\n") == 1


def test_without_a_gpu_the_machines_memory_alone_refuses(plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "host_bytes", lambda: 10**9)
    with pytest.raises(ConfigError, match=r"a machine's processes would hold .* and it has 1\.0, .* little"):
        plan(SFT)
    # An engine whose cache is too small for one sequence says so itself.
    monkeypatch.setattr(module, "host_bytes", lambda: 10**12)
    rl = (
        "--actor.model_name_or_path Qwen/Qwen3-0.6B --data.prompt_dataset d --data.max_len 2048 --vllm.kv_cache_gb 0.01"
    )
    made = plan(f"{rl} --reward.remote_url http://127.0.0.1:1/", command="rl")
    assert made.plan is not None and made.plan.memory.misfits


def test_a_run_that_was_planned_to_fit_can_still_be_told_what_is_cheaper(plan):
    made = plan(f"{SFT} --train.micro_batch_size 4", gb=140.0)
    change = cheaper(made)
    assert change is not None and change.same_result and change.saves > 0
    refused = plan(f"{SFT} --plan.force", gb=24.0)
    assert cheaper(refused) == refused.plan.changes[0]
    assert cheaper(replace(made, plan=replace(made.plan, changes=refused.plan.changes))) == refused.plan.changes[0]
