"""From flags to roles, for a GPU that is not there: nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_ext.cli.rl_roles import Schedule, model_specs, roles_spec
from openrlhf_ext.cluster.build import RolesSpec
from openrlhf_ext.config import parse
from openrlhf_ext.device import Device
from openrlhf_ext.errors import ConfigError

GPUS = Device("cuda", 4, frozenset({"sleep", "ipc", "bf16"}))
CPU = Device("cpu", 0, frozenset({"bf16"}))
SHARED = "--train.colocate_all --actor.num_gpus_per_node 2 --ref.num_gpus_per_node 2"


@pytest.fixture
def roles(tmp_path: Path):
    (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels): ...")
    needed = f"--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url {tmp_path}/reward.py"

    def make(flags: str, device: Device = GPUS) -> RolesSpec:
        return roles_spec(parse("rl", [*needed.split(), *flags.split()]), device, Schedule(1, 1))

    return make


def test_roles_on_a_shared_gpu_take_turns(roles):
    spec = roles(f"{SHARED} --vllm.enable_sleep --ds.enable_sleep --vllm.num_engines 2")
    assert spec.engines.settings.transport == "ipc"
    assert spec.engines.settings.enable_sleep
    assert spec.policy.sleeps
    assert spec.reference.sleeps


def test_weights_are_broadcast_between_gpus(roles):
    spec = roles("--actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --vllm.num_engines 2")
    assert spec.engines.settings.transport == "broadcast"
    assert not spec.policy.sleeps


def test_an_engine_without_a_training_rank_on_its_gpu_is_refused(roles):
    with pytest.raises(ConfigError, match=r"--vllm\.num_engines 3 .* give --vllm\.num_engines 2 or less"):
        roles(f"{SHARED} --vllm.num_engines 3")
    assert roles(f"{SHARED} --vllm.num_engines 3", CPU).engines.count == 3


def test_an_engine_of_several_gpus_shares_none(roles):
    with pytest.raises(ConfigError, match="tensor_parallel_size 2"):
        roles(f"{SHARED} --vllm.tensor_parallel_size 2")


def test_the_policy_s_files_are_its_engines_too():
    line = "--actor.model_name_or_path /m --data.prompt_dataset /d --reward.model_name_or_path /r"
    specs = model_specs(parse("rl", f"{line} --algo.advantage.estimator gae".split()), CPU)
    assert [(spec.kind, spec.served) for spec in specs] == [("causal_lm", True), ("value", False), ("reward", False)]
