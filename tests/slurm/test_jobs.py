"""The job scripts on a real Slurm of two nodes, as a user gives them to sbatch: unchanged, with their environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
Script = Callable[[str], str]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
FLAGS = ("--data.max_len", "256", "--ds.param_dtype", "fp32", "--ds.attn_implementation", "sdpa", "--adam.lr", "1e-3")


def overrides(workshop: Path, cluster: SlurmCluster, **more: str) -> dict[str, str]:
    return {
        "MODEL": str(workshop / "model"),
        "DATA": str(workshop / "train.jsonl"),
        "TEST": str(workshop / "test.jsonl"),
        "GPUS_PER_NODE": "2",
        "DEVICE": "cpu",
        "BATCH": "16",
        "VENV": sys.prefix,
        "PYTHONPATH": str(ROOT),
        "SCRATCH": str(cluster.folder / "o ut"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


@pytest.fixture(scope="module")
def script(cluster: SlurmCluster) -> Callable[[str], str]:
    """A job script by its name, in a repository whose path has a space."""
    (cluster.folder / "the repository").symlink_to(ROOT)
    return lambda name: str(cluster.folder / "the repository" / "slurm" / name)


def trace(folder: Path, name: str = "train/loss") -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def one_rank(workshop: Path, cluster: SlurmCluster, folder: Path, *flags: str) -> list[float]:
    """The losses of the same job in one process, without Slurm."""
    words = [
        *("--preset", "qwen3-4b-pm-8x24gb", "--model.model_name_or_path", str(workshop / "model")),
        *("--model.num_gpus_per_node", "1", "--train.batch_size", "16", "--train.micro_batch_size", "2"),
        *("--data.dataset", str(workshop / "train.jsonl"), "--eval.dataset", str(workshop / "test.jsonl")),
        *("--eval.split", "train", "--device", "cpu", *FLAGS, *flags),
        *("--ckpt.output_dir", str(folder), "--ckpt.path", str(folder / "checkpoints")),
    ]
    environment = cluster.environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_ext.cli.train_rm", *words],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return trace(folder)


def nothing_is_left(cluster: SlurmCluster) -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end:
        left = [process for name in cluster.names for process in cluster.processes(name)]
        if not left:
            return
        time.sleep(0.5)
    raise AssertionError([process.cmdline() for process in left])


def test_a_preference_model_over_two_nodes_learns_what_one_process_learns(
    cluster: SlurmCluster, workshop: Path, script: Script, tmp_path: Path
) -> None:
    env = overrides(workshop, cluster)
    job = cluster.submit("--nodes=2", script("train_pm_hh_rlhf.sh"), *FLAGS, "--train.max_epochs", "2", env=env)
    ended = cluster.wait(job, *OVER)
    output = cluster.output(job)
    assert ended["JobState"] == "COMPLETED", output
    assert "2 nodes (node[1-2]) x 2 ranks = 4 on cpu" in output
    assert "effective batch 2 x 2 x 4 = 16" in output
    assert "rank 0 on node1 meets the others at 10.77.0.2:" in output and "over eth0 (10.77.0.2)" in output
    assert "rank 3 on node2 meets the others at 10.77.0.2:" in output and "over eth0 (10.77.0.3)" in output
    losses = trace(cluster.folder / "o ut" / f"pm-hh-rlhf-{job}")
    alone = one_rank(workshop, cluster, tmp_path, "--train.max_epochs", "2")
    assert len(losses) == len(alone) == 8
    assert losses[:3] == pytest.approx(alone[:3], rel=1e-5)
    assert losses == pytest.approx(alone, rel=1e-3)
    nothing_is_left(cluster)


RL = (
    *("--rollout.batch_size", "8", "--rollout.n_samples_per_prompt", "2", "--train.batch_size", "16"),
    *("--train.micro_batch_size", "8", "--rollout.max_new_tokens", "8", "--data.max_len", "64"),
    *("--algo.advantage.estimator", "reinforce", "--ds.param_dtype", "fp32", "--ds.attn_implementation", "sdpa"),
)


def rl_overrides(workshop: Path, cluster: SlurmCluster, **more: str) -> dict[str, str]:
    own = {"GPUS_PER_NODE": "1", "DATA": str(workshop / "prompts.jsonl"), "TEST": "", "BATCH": "", **more}
    return overrides(workshop, cluster, REWARD=str(workshop / "reward.py"), **own)


def test_rl_over_two_nodes(cluster: SlurmCluster, workshop: Path, script: Script) -> None:
    job = cluster.submit("--nodes=2", script("train_ppo_ray.sh"), *RL, env=rl_overrides(workshop, cluster))
    ended = cluster.wait(job, *OVER)
    output = cluster.output(job)
    assert ended["JobState"] == "COMPLETED", output
    assert "Ray has node1, node2" in output
    assert "policy: 2 ranks meet: node1 over eth0 (10.77.0.2), node2 over eth0 (10.77.0.3)" in output
    assert len(trace(cluster.folder / "o ut" / f"rl-{job}", "reward")) == 2
    assert (cluster.folder / "o ut" / f"rl-{job}" / "model" / "model.safetensors").exists()
    # The engine of the other node was given the weights of every step: what it samples by is what is trained.
    mismatch = trace(cluster.folder / "o ut" / f"rl-{job}", "mismatch/abs_max")
    assert len(mismatch) == 2 and max(mismatch) < 1e-4
    nothing_is_left(cluster)


@pytest.mark.parametrize("name", ["train_pm_hh_rlhf.sh", "train_ppo_ray.sh"])
@pytest.mark.parametrize("fault", ["missing", "others"])
def test_a_model_that_is_not_the_same_on_a_node_is_said_before_anything_loads(
    cluster: SlurmCluster, workshop: Path, script: Script, name: str, fault: str
) -> None:
    local = workshop / f"{fault} {name}"  # as a disk of each node
    shutil.copytree(workshop / "model", local / "model")
    on_node2 = workshop / f"node2's {fault} {name}"
    on_node2.mkdir()
    if fault == "others":
        shutil.copytree(workshop / "model", on_node2 / "model")
        (on_node2 / "model" / "config.json").write_text("{ }")
    cluster.run("mount", "--bind", str(on_node2), str(local), host="node2")
    rl = name == "train_ppo_ray.sh"
    env = (rl_overrides if rl else overrides)(workshop, cluster, MODEL=str(local / "model"), GPUS_PER_NODE="1")
    job = cluster.submit("--nodes=2", script(name), *(RL if rl else FLAGS), env=env)
    ended = cluster.wait(job, *OVER)
    output = cluster.output(job)
    assert ended["ExitCode"] == "2:0", output
    reader = "policy" if rl else "ranks"
    if fault == "missing":
        assert f"node2 has no {local}/model, which is read there by the {reader}: put it on storage" in output
    else:
        assert f"{local}/model is read by the {reader} on node2 and holds other files there than on node1" in output
    assert "Traceback" not in output
    nothing_is_left(cluster)


def test_the_arithmetic_of_256(cluster: SlurmCluster, workshop: Path, script: Script) -> None:
    said = cluster.run("sbatch", "--test-only", script("train_pm_hh_rlhf_bs256.sh"))
    assert "to start at" in said
    assert "node[1-2]" in said
    said = cluster.run("sbatch", "--test-only", "--nodes=3", script("train_pm_hh_rlhf_bs256.sh"), check=False)
    assert "not available" in said
    # Taken apart: two nodes of eight declared GPUs, the numbers, and no installation to run.
    job = cluster.submit(script("train_pm_hh_rlhf_bs256.sh"), env={"VENV": "/nowhere"})
    ended = cluster.wait(job, *OVER, seconds=60)
    assert ended["ExitCode"] == "2:0"
    assert "effective batch 2 x 8 x 16 = 256" in cluster.output(job)
    assert "VENV /nowhere holds no bin/python" in cluster.output(job)


@pytest.mark.parametrize(
    ("env", "flags", "sentence"),
    [
        ({"DEVICE": "cuda", "GPUS_PER_NODE": "4"}, [], "GPUS_PER_NODE is 4 and Slurm gave 8 on each node"),
        ({"BATCH": "18"}, [], "an effective batch of 18 is no multiple of 2 x 2 ranks = 4"),
        ({"ACCUMULATION": "8"}, [], "MICRO 2 x ACCUMULATION 8 x 2 ranks is 32, and BATCH asks for 16"),
        ({"SWEEP": "adam.lr=1e-3,1e-4"}, [], "SWEEP needs an array"),
        ({"SWEEP": "adam.lr=1e-3,1e-4"}, ["--array=5"], "SWEEP has 2 values and this is task 5"),
    ],
)
def test_a_contradiction_is_said_in_seconds(
    cluster: SlurmCluster, workshop: Path, script: Script, env: dict[str, str], flags: list[str], sentence: str
) -> None:
    start = time.monotonic()
    job = cluster.submit(*flags, script("train_pm_hh_rlhf.sh"), env=overrides(workshop, cluster, **env))
    ended = cluster.wait(job, *OVER, seconds=30)
    assert ended["ExitCode"] == "2:0", cluster.output(job)
    assert sentence in cluster.output(job)
    assert time.monotonic() - start < 15


def test_a_task_of_a_sweep_has_its_value(cluster: SlurmCluster, workshop: Path, script: Script) -> None:
    env = overrides(workshop, cluster, GPUS_PER_NODE="1", SWEEP="train.seed=7,8")
    job = cluster.submit("--array=1", script("train_pm_hh_rlhf.sh"), *FLAGS, "--data.max_samples", "16", env=env)
    ended = cluster.wait(job, *OVER)
    assert ended["JobState"] == "COMPLETED", cluster.output(job)
    config = (cluster.folder / "o ut" / f"pm-hh-rlhf-{job}-1" / "config.yaml").read_text()
    assert "seed: 8" in config


def test_gpus_are_asked_for_as_the_cluster_wants(cluster: SlurmCluster, workshop: Path, script: Script) -> None:
    for request, wish in (("gpus-per-node", "gres:gpu:declared:2"), ("gres", "gres:gpu:declared:2")):
        env = {"GPU_REQUEST": request, "GPU_TYPE": "declared", "VENV": "/nowhere", "BATCH": "16"}
        said = cluster.run("bash", script("submit.sh"), "--gpus=2", script("train_pm_hh_rlhf.sh"), env=env)
        job = int(said.split()[-1])
        ended = cluster.wait(job, *OVER, seconds=60)
        assert wish in ended["TresPerNode"], ended
        assert "effective batch 2 x 4 x 2 = 16" in cluster.output(job)
        assert "VENV /nowhere" in cluster.output(job)


def test_a_job_that_runs_out_of_time_comes_back_and_ends_as_if_it_had_not(
    cluster: SlurmCluster, workshop: Path, script: Script
) -> None:
    """Slurm sends its warning up to a minute early, so a job of two minutes may be warned while it loads. Once it has
    come back it has time enough, however busy the machine is."""
    env = overrides(workshop, cluster, GPUS_PER_NODE="1")
    flags = [*FLAGS, "--train.max_epochs", "200", "--data.max_samples", "32"]
    whole = cluster.submit("--nodes=2", "--time=30", script("train_pm_hh_rlhf.sh"), *flags, env=env)
    assert cluster.wait(whole, *OVER)["JobState"] == "COMPLETED", cluster.output(whole)
    job = cluster.submit("--nodes=2", "--time=2", "--signal=B:USR1@45", script("train_pm_hh_rlhf.sh"), *flags, env=env)
    end = time.monotonic() + 300
    while cluster.fields(job)["Restarts"] == "0":
        assert time.monotonic() < end and cluster.state(job) not in OVER, cluster.output(job)
        time.sleep(0.5)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    ended = cluster.wait(job, *OVER, seconds=900)
    output = cluster.output(job)
    assert ended["JobState"] == "COMPLETED", output
    assert ended["Restarts"] == "1"
    assert "the time is nearly up: saving" in output
    assert "back into the queue; it goes on from" in output
    uninterrupted, resumed = (trace(cluster.folder / "o ut" / f"pm-hh-rlhf-{number}") for number in (whole, job))
    assert len(uninterrupted) == 400
    assert uninterrupted == resumed


def test_scancel_leaves_nothing(cluster: SlurmCluster, workshop: Path, script: Script) -> None:
    job = _running(cluster, workshop, script)
    cluster.run("scancel", str(job))
    assert cluster.wait(job, *OVER, seconds=60)["JobState"] == "CANCELLED"
    nothing_is_left(cluster)


@pytest.mark.parametrize("power", [False, True], ids=["slurmd", "power"])
def test_a_lost_node_ends_the_job_and_leaves_nothing(
    cluster: SlurmCluster, workshop: Path, script: Script, power: bool
) -> None:
    job = _running(cluster, workshop, script, "--no-requeue")
    with cluster.without("node2", power=power):
        ended = cluster.wait(job, *OVER, seconds=180)
        assert ended["JobState"] in ("NODE_FAIL", "FAILED"), cluster.output(job)
        assert "Node failure on node2" in cluster.output(job)  # Slurm's own word for it
        nothing_is_left(cluster)


def test_a_node_that_rl_loses_ends_the_job_and_is_named(cluster: SlurmCluster, workshop: Path, script: Script) -> None:
    # This Slurm gives a node up after 20 s, about as soon as Ray does; with its default of 300 s Ray is first, as here.
    words = ["--nodes=2", "--no-requeue", "--no-kill", script("train_ppo_ray.sh"), *RL, "--train.num_episodes", "1000"]
    job = _at_step_2(cluster, cluster.submit(*words, env=rl_overrides(workshop, cluster)))
    with cluster.without("node2"):
        ended = cluster.wait(job, *OVER, seconds=240)
        assert ended["JobState"] in ("NODE_FAIL", "FAILED"), cluster.output(job)
        assert "node2 was lost" in cluster.output(job)
        nothing_is_left(cluster)


def _running(cluster: SlurmCluster, workshop: Path, script: Script, *flags: str) -> int:
    """A job over both nodes that has come to its second step."""
    env = overrides(workshop, cluster, GPUS_PER_NODE="1")
    words = ["--nodes=2", *flags, script("train_pm_hh_rlhf.sh"), *FLAGS, "--train.max_epochs", "1000"]
    return _at_step_2(cluster, cluster.submit(*words, env=env))


def _at_step_2(cluster: SlurmCluster, job: int) -> int:
    end = time.monotonic() + 300
    while "step 2/" not in cluster.output(job):
        assert time.monotonic() < end and cluster.state(job) in ("PENDING", "RUNNING"), cluster.output(job)
        time.sleep(0.5)
    return job
