from __future__ import annotations

import os

import pytest

from openrlhf_ext.cli.launch import Launch, first_node, launch_of, parse_launched
from openrlhf_ext.errors import ConfigError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "40007",
    "SLURM_STEP_NODELIST": "gpu03,gpu04",
}
FLAGS = ["--model.model_name_or_path", "m", "--data.dataset", "d"]


def test_the_variables_of_torchrun():
    assert launch_of(TORCHRUN) == Launch(3, 4, 1, 2, "10.0.0.1", 29500, served=False)
    served = launch_of(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert served is not None and served.served


def test_the_variables_of_srun():
    assert launch_of(SRUN) == Launch(5, 8, 1, 4, "gpu03", 21703, served=False)
    assert launch_of(SRUN | {"MASTER_ADDR": "h", "MASTER_PORT": "7"}) == Launch(5, 8, 1, 4, "h", 7, served=False)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # a batch script, which runs once
    ],
)
def test_a_process_alone_has_no_launcher(environ):
    assert launch_of(environ) is None


@pytest.mark.parametrize(("nodes", "first"), [("a1", "a1"), ("a1,a2", "a1"), ("127.0.0.1", "127.0.0.1")])
def test_the_first_of_nodes_that_are_spelled_out(nodes, first):
    assert first_node(nodes) == first


def test_slurm_takes_its_lists_apart(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames rack[1-2]n[01-04]" ] && printf "rack1n01\\nrack1n02\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert first_node("rack[1-2]n[01-04]") == "rack1n01"
    with pytest.raises(ConfigError, match="set MASTER_ADDR"):
        first_node("gpu[03-05,09],cpu1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="set MASTER_ADDR"):
        first_node("rack[1-2]n[01-04]")


def test_ranks_come_from_the_launcher_unless_flags_say_as_many(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    parsed, launch = parse_launched("sft", FLAGS)
    assert launch is not None and launch.rank == 3
    assert (parsed.config.model.num_nodes, parsed.config.model.num_gpus_per_node) == (2, 2)
    parsed, _ = parse_launched("sft", [*FLAGS, "--model.num_gpus_per_node", "4"])
    assert (parsed.config.model.num_nodes, parsed.config.model.num_gpus_per_node) == (1, 4)
    with pytest.raises(ConfigError, match=r"num_gpus_per_node 3: the launcher started 4 ranks"):
        parse_launched("sft", [*FLAGS, "--model.num_gpus_per_node", "3", "--train.batch_size", "120"])


def test_contradictions_are_said(monkeypatch):
    with pytest.raises(ConfigError, match="5 ranks with 2 on this machine"):
        launch_of(TORCHRUN | {"WORLD_SIZE": "5"})
    with pytest.raises(ConfigError, match="RANK is 'x'"):
        launch_of(TORCHRUN | {"RANK": "x"})


def test_ranks_have_the_threads_of_the_cores_that_slurm_gave(monkeypatch):
    for name, value in (SRUN | {"SLURM_CPUS_ON_NODE": "32"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    parse_launched("sft", FLAGS)
    assert os.environ["OMP_NUM_THREADS"] == "8"
