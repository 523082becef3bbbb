"""What job scripts of Slurm compute, refuse and start, without a Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_scripts import GRANTED, PYTHON, ROOT, StandIns, run

from openrlhf_ext.cli.plan import plan_of

BATCHES = {
    "train_pm_hh_rlhf.sh": "2 x 4 x 16 = 128",
    "train_pm_hh_rlhf_bs256.sh": "2 x 8 x 16 = 256",
    "train_sft.sh": "2 x 4 x 16 = 128",
    "train_dpo.sh": "2 x 2 x 16 = 64",
}


@pytest.mark.parametrize("script", [*BATCHES, "train_ppo_ray.sh"])
def test_gpus_given_are_held_against_those_asked_for_in_seconds(script: str, tmp_path: Path):
    start = time.monotonic()
    fewer = run("bash", str(ROOT / "slurm" / script), cwd=tmp_path, env=GRANTED | {"GPUS_PER_NODE": "4"})
    assert fewer.returncode == 2
    assert "job: GPUS_PER_NODE is 4 and Slurm gave 8 on each node: ask for as many" in fewer.stderr
    none = run("bash", str(ROOT / "slurm" / script), cwd=tmp_path, env=GRANTED | {"SLURM_GPUS_ON_NODE": "0"})
    assert none.returncode == 2
    assert "Slurm gave no GPU: ask for some" in none.stderr
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir()), "and nothing was begun"


@pytest.mark.parametrize("script", BATCHES)
def test_the_effective_batch_is_computed_or_refused_in_seconds(script: str, tmp_path: Path):
    path = str(ROOT / "slurm" / script)
    nowhere = GRANTED | {"VENV": str(tmp_path / "nowhere")}
    done = run("bash", path, cwd=tmp_path, env=nowhere)
    assert f"job: effective batch {BATCHES[script]}\n" in done.stdout
    assert done.returncode == 2 and "holds no bin/python" in done.stderr
    uneven = run("bash", path, cwd=tmp_path, env=nowhere | {"BATCH": "100"})
    assert uneven.returncode == 2
    assert "an effective batch of 100 is no multiple of 2 x 16 ranks = 32" in uneven.stderr
    twice = run("bash", path, cwd=tmp_path, env=nowhere | {"ACCUMULATION": "3"})
    assert twice.returncode == 2
    assert "MICRO 2 x ACCUMULATION 3 x 16 ranks is 96, and BATCH asks for" in twice.stderr


OWN_FLAGS = {
    "--train.batch_size": "BATCH and MICRO",
    "--micro_train_batch_size": "BATCH and MICRO",
    "--ckpt.path": "SCRATCH and RUN_NAME",
    "--save_path": "SCRATCH and RUN_NAME",
    "--device": "DEVICE",
}
OF_RL = [flag for flag, instead in OWN_FLAGS.items() if "BATCH" not in instead]


@pytest.mark.parametrize(
    ("script", "flag"),
    [*((name, flag) for name in BATCHES for flag in OWN_FLAGS), *(("train_ppo_ray.sh", flag) for flag in OF_RL)],
)
def test_a_flag_that_the_script_gives_itself_is_refused(script: str, flag: str, tmp_path: Path):
    programs = StandIns(tmp_path)
    swept = programs.run(script, SWEEP=f"{flag.removeprefix('--')}=1,2", SLURM_ARRAY_TASK_ID="0")
    for done in (programs.run(script, "--adam.lr", "1", flag, "4"), programs.run(script, f"{flag}=4"), swept):
        assert done.returncode == 2
        assert f"job: {flag} is given by this script" in done.stderr
        assert f"set {OWN_FLAGS[flag]} in the environment instead" in done.stderr
    assert not programs.calls("srun") and not (tmp_path / "o ut").exists()


@pytest.mark.parametrize("name", ["BATCH", "MICRO", "ACCUMULATION"])
def test_a_batch_of_rl_is_its_flags_affair(name: str, tmp_path: Path):
    done = StandIns(tmp_path).run("train_ppo_ray.sh", **{name: "64"})
    assert done.returncode == 2
    assert "give --train.batch_size and --train.micro_batch_size" in done.stderr


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_rl_as_the_script_asks_for_it_fits_into_gpus_of_80_gb(nodes: str, tmp_path: Path):
    programs = StandIns(tmp_path)
    done = programs.run("train_ppo_ray.sh", MODEL="Qwen/Qwen3-4B", SLURM_JOB_NUM_NODES=nodes)
    assert done.returncode == 0, done.stdout + done.stderr
    flags = programs.calls("python")[-1]
    assert flags[:3] == ["-m", "openrlhf_ext.cli.main", "rl"]
    plan, _ = plan_of("rl", [*flags[3:], "--device.memory_gb", "80", "--device.count", "8", "--nodes", nodes])
    assert plan.verdict == "fits"
    assert not [warning for warning in plan.warnings if warning.code.startswith("colocated")]


def test_a_batch_of_rl_that_its_ranks_cannot_share_is_said_before_ray_starts(tmp_path: Path):
    programs = StandIns(tmp_path)
    done = programs.run("train_ppo_ray.sh", "--train.batch_size", "8", VENV=sys.prefix)
    assert done.returncode == 2
    assert "--train.batch_size 8: it is no multiple of --train.micro_batch_size 1 x 16 ranks; choose 16" in done.stderr
    assert not programs.calls("srun")


def test_the_effective_batch_of_rl_is_its_policy_s():
    flags = [*("--actor.model_name_or_path", "m", "--data.prompt_dataset", "d"), *("--reward.remote_url", "http://r")]
    flags += [*("--actor.num_nodes", "2", "--actor.num_gpus_per_node", "4"), *("--train.micro_batch_size", "2")]
    said = run(sys.executable, str(ROOT / "slurm" / "node.py"), "batch", *flags)
    assert said.stdout == "effective batch 2 x 8 x 8 = 128\n", said.stderr
    tokens = ["--train.dynamic_batch_enable", "--train.max_tokens_per_gpu", "4096", "--ds.packing_samples"]
    said = run(sys.executable, str(ROOT / "slurm" / "node.py"), "batch", *flags, *tokens)
    assert said.stdout == "effective batch 128 over 8 ranks, by their tokens\n", said.stderr


@pytest.mark.parametrize(
    ("interface", "peer", "sentence"),
    [
        ("", "localhost", "takes localhost for itself (127.0.0.1): set NETWORK to an interface; it has "),
        ("", "no such node", "knows no way to no such node"),
        ("ib7", "", "NETWORK ib7 is no interface of"),
    ],
)
def test_an_address_that_others_cannot_reach_is_refused(interface: str, peer: str, sentence: str):
    done = run(sys.executable, str(ROOT / "slurm" / "node.py"), "address", interface, peer)
    assert done.returncode == 2 and sentence in done.stderr


def test_a_node_without_others_keeps_to_itself():
    assert run(sys.executable, str(ROOT / "slurm" / "node.py"), "address", "", "").stdout == "127.0.0.1\n"


def test_rl_without_gpus_is_not_told_to_sleep(tmp_path: Path):
    programs = StandIns(tmp_path)
    assert programs.run("train_ppo_ray.sh", DEVICE="cpu", GPUS_PER_NODE="1").returncode == 0
    assert "--train.colocate_all" in programs.calls("python")[-1]
    assert "--vllm.enable_sleep" not in programs.calls("python")[-1]


def test_the_first_rank_s_exit_code_is_kept_and_one_that_comes_back_did_not_fail(tmp_path: Path):
    """As srun has them: it kills the others where one ends badly."""
    rank, ended = str(ROOT / "slurm" / "rank.sh"), tmp_path / "an end"
    assert run("bash", rank, "true", env={"ENDED": str(ended)}).returncode == 0
    assert not ended.exists()
    assert run("bash", rank, "bash", "-c", "exit 3", env={"ENDED": str(ended)}).returncode == 3
    assert run("bash", rank, "bash", "-c", "exit 75", env={"ENDED": str(ended)}).returncode == 0
    assert ended.read_text() == "3\n"
    ended.unlink()
    assert run("bash", rank, "bash", "-c", "exit 75", env={"ENDED": str(ended)}).returncode == 0
    assert ended.read_text() == "75\n"


def test_a_rank_that_is_told_before_it_listens_hears_it_all_the_same(tmp_path: Path):
    listener = tmp_path / "listens late.py"
    listener.write_text(
        "import os, signal, sys, time\n"
        "open(sys.argv[1], 'w').close()\n"
        "time.sleep(1)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))\n"
        "time.sleep(30)\n"
    )
    began, ended = tmp_path / "began", tmp_path / "ended"
    words = ["bash", str(ROOT / "slurm" / "rank.sh"), sys.executable, str(listener), str(began)]
    with subprocess.Popen(words, env=os.environ | {"ENDED": str(ended)}) as rank:
        while not began.exists():
            time.sleep(0.01)
        time.sleep(0.2)  # the trap is set right behind the start
        rank.send_signal(signal.SIGUSR1)
        assert rank.wait(timeout=20) == 0
    assert ended.read_text() == "75\n"


def test_nodes_are_named_as_slurm_names_them(tmp_path: Path):
    """A host name may be a whole domain's, and no node of Slurm's."""
    programs = StandIns(tmp_path, hostname="echo gpu1.cluster.example")
    done = programs.run("train_ppo_ray.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {where for where, *_ in programs.calls("srun")} == {"--nodelist=gpu1", "--exclude=gpu1"}
    assert ["address", "", "gpu2"] in [words[-3:] for words in programs.calls("python")]


@pytest.mark.parametrize(("given", "each"), [("16", "2"), ("7", "1")])
def test_ranks_share_the_cpus_of_their_node(given: str, each: str, tmp_path: Path):
    programs = StandIns(tmp_path)
    assert programs.run("train_sft.sh", SLURM_CPUS_ON_NODE=given).returncode == 0
    [step] = programs.calls("srun")
    assert f"--cpus-per-task={each}" in step


def test_what_a_rank_said_before_the_job_came_back_is_kept_and_not_shown_again(tmp_path: Path):
    log = tmp_path / "o ut" / "same" / "logs" / "rank-0.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\n")
    programs = StandIns(tmp_path, srun=f"echo step 2 >>'{log}'")
    done = programs.run("train_sft.sh", RUN_NAME="same")
    assert "step 2" in done.stdout and "step 1" not in done.stdout
    assert log.read_text() == "step 1\nstep 2\n"


@pytest.mark.parametrize("script", ["train_sft.sh", "train_ppo_ray.sh"])
def test_every_python_of_a_job_runs_in_the_container(script: str, tmp_path: Path):
    programs = StandIns(tmp_path, apptainer=PYTHON)
    image = tmp_path / "an image.sif"
    image.touch()
    done = programs.run(script, CONTAINER=str(image), BINDS="/models,/my data:/data:ro", VENV="/nowhere")
    assert done.returncode == 0, done.stdout + done.stderr
    bound = ["--bind", str(ROOT), "--bind", str(tmp_path / "o ut"), "--bind", "/models,/my data:/data:ro"]
    called = ["exec", *bound, "--nv", str(image), "python"]
    calls = programs.calls("apptainer")
    assert len(calls) >= 2 and all(call[: len(called)] == called for call in calls)
    assert not programs.calls("python")
    steps = programs.calls("srun")
    assert steps and all("/".join(called) in "/".join(step) for step in steps)
    asked = {words[0] for call in calls if (words := call[len(called) + 1 :])}
    assert {"address", "port"} <= asked


def test_a_container_without_apptainer_is_said(tmp_path: Path):
    done = StandIns(tmp_path).run("train_sft.sh", CONTAINER=str(tmp_path), PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert done.returncode == 2
    assert "CONTAINER needs apptainer or singularity, and neither is on this node" in done.stderr
