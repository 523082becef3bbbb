"""From the flags of a judge to what is asked, and what its answers are kept under."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from openrlhf_ext.cli.rl_judge import checked_judge, name_of_weights, run_judge
from openrlhf_ext.cli.rl_roles import Schedule, pools_of, roles_spec
from openrlhf_ext.config import Parsed, parse
from openrlhf_ext.device import Device
from openrlhf_ext.errors import ConfigError, RewardError
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.types import Prompt

CPU = Device("cpu", 0, frozenset({"bf16"}))
SHAPE = TinyShape(hidden=32, layers=1, heads=1, kv_heads=1, intermediate=32, vocab=259, max_positions=512)
RUBRIC = (
    "instructions: '{{ columns.note }} {{ response }}'\ncriteria: [{name: correct, description: x, scale: boolean}]\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    build_tiny_model(tmp_path / "model", SHAPE)
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    return tmp_path


def parsed(flags: str) -> Parsed:
    line = (
        "--actor.model_name_or_path model --data.prompt_dataset d --reward.remote_url r.py --ckpt.output_dir out "
        f"--algo.advantage.estimator reinforce --device.type cpu {flags}"
    )
    return parse("rl", shlex.split(line))


def test_a_judge_with_a_rubric_rewards_and_keeps_what_it_says(folder: Path):
    run = run_judge(parsed("--judge.model_name_or_path model --judge.prompt rubric.yaml").config)
    assert run is not None and run.source is not None and run.endpoint is None
    assert run.source.origin == "model with rubric.yaml"
    assert (folder / "out/judge_cache").is_dir()
    with pytest.raises(RewardError, match="note"), checked_judge(run, [Prompt("p", (), "text", "1")]):
        pass
    with checked_judge(run, [Prompt("p", (), "text", "1", meta={"note": "n"})]) as asked:
        assert asked is run.judge


def test_a_judge_without_a_rubric_is_for_reward_files(folder: Path):
    run = run_judge(parsed("--judge.model_name_or_path model --judge.cache off").config)
    assert run is not None and run.source is None
    assert not (folder / "out").exists()
    assert run_judge(parsed("").config) is None


def test_an_endpoint_that_is_not_there_stops_the_run(folder: Path):
    flags = "--judge.url http://127.0.0.1:9/v1 --judge.served_model_name m --judge.cache cache"
    run = run_judge(parsed(flags).config)
    assert run is not None and run.endpoint is not None
    with pytest.raises(ConfigError, match="cannot be reached"), checked_judge(run, []):
        pass
    assert (folder / "cache").is_dir()


def test_the_name_of_weights_is_another_when_they_are(folder: Path):
    name = name_of_weights("model", "float32")
    assert name == name_of_weights(str(folder / "model"), "float32") != name_of_weights("model", "bfloat16")
    weights = folder / "model/model.safetensors"
    os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 1))
    trained = name_of_weights("model", "float32")
    (folder / "model/chat_template.jinja").write_text("{{ messages[0].content }}")
    assert len({name, trained, name_of_weights("model", "float32")}) == 3
    assert name_of_weights("owner/model", "float32") == "owner/model (float32)"


def test_the_role_is_what_the_flags_say(folder: Path):
    flags = "--judge.model_name_or_path model --judge.num_engines 2 --judge.threads 3 --judge.kv_cache_gb 0.5"
    role = roles_spec(parsed(flags), CPU, Schedule(1, 1)).judge
    assert role is not None
    assert (role.count, role.threads, role.settings.kv_cache_gb, role.settings.role) == (2, 3, 0.5, "judge")
    assert role.settings.max_model_len == SHAPE.max_positions, "what the model reads, where that is less"
    assert role.settings.transport is None


@pytest.mark.parametrize(
    ("flags", "shares"),
    [("", False), ("--train.colocate_all", True), ("--train.colocate_all --train.async_enable", False)],
)
def test_a_judge_shares_where_all_take_turns(folder: Path, flags: str, shares: bool):
    config = parsed(f"--judge.model_name_or_path model {flags}").config
    assert (pools_of(config).get("judge") == "all") == shares
