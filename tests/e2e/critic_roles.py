"""Critic, reward model and a policy with adapters on Ray. A script: Ray's settings are environment variables that must
stand before it is imported.

critic_roles.py FOLDER: works on FOLDER/model and FOLDER/scorer, and leaves FOLDER/answer.json beside what it exports.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ext.cluster.environment import prepare_environment

ROWS = [(3, 5), (4, 1), (2, 9), (5, 7), (3, 3), (2, 2), (6, 6), (1, 8)]
"""Lengths of the prompts and of the answers."""


LONG = [(3, 5000)] * 4
"""More than a process is given where memory is to run out: attention alone sees a mask of 25 million numbers a row."""


def rollouts(rows: Sequence[tuple[int, int]] = ROWS) -> list[Any]:
    from openrlhf_ext.types import Rollout

    return [
        Rollout(
            prompt_id=str(index),
            sample=0,
            token_ids=tuple((7 * index + 3 * t * t) % 200 + 3 for t in range(prompt + answer)),
            action_mask=(False,) * prompt + (True,) * answer,
            logprobs=(0.0,) * prompt + (-1.0,) * answer,
            text="",
            finish_reason="stop",
            versions=(0, 0),
        )
        for index, (prompt, answer) in enumerate(rows)
    ]


def roles_of(folder: Path, device: Any) -> Any:
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.cluster.build import EngineRole, RolesSpec, TrainedRole
    from openrlhf_ext.cluster.roles import CheckpointContent
    from openrlhf_ext.engine.spec import EngineSpec
    from openrlhf_ext.models.spec import LoraSpec, ModelSpec
    from openrlhf_ext.rollout.vllm_engine import EngineSettings

    model, scorer = str(folder / "model"), str(folder / "scorer")
    trained = EngineSpec(zero_stage=3, dtype="fp32", lr=3e-3, lr_scheduler="constant", warmup_ratio=0.0, seed=11)
    frozen = EngineSpec(zero_stage=0, dtype="fp32", trainable=False)
    settings = EngineSettings(
        model, transport="object_store", max_model_len=64, dtype="float32", kv_cache_gb=0.05, enforce_eager=True
    )
    content = CheckpointContent(state=True, model=True)
    policy = ModelSpec(model, dtype="fp32", lora=LoraSpec(rank=4))
    return RolesSpec(
        device=device,
        policy=TrainedRole(1, policy, trained, threads=1, content=content),
        reference=None,
        engines=EngineRole(1, settings, threads=1, bucket_bytes=1 << 20),
        split=SplitSettings(rows=2),
        critic=TrainedRole(2, ModelSpec(model, dtype="fp32", kind="value"), trained, threads=1, content=content),
        reward=TrainedRole(2, ModelSpec(scorer, dtype="fp32", kind="reward"), frozen, threads=1),
        reference_is_base=True,
        pools={"actor": "train", "critic": "train"},
    )


def measure(folder: Path) -> dict[str, Any]:
    from openrlhf_ext.batch.pad import token_batch
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.batch.split import train_steps
    from openrlhf_ext.batch.types import Experience
    from openrlhf_ext.cluster.build import build_roles
    from openrlhf_ext.cluster.session import RaySettings, ray_session
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.track.memory import MemoryLog
    from openrlhf_ext.trainers.objectives import PolicyObjective, ValueObjective

    device = choose_device("cpu")
    spec = roles_of(folder, device)
    batch = token_batch(rollouts(), pad_id=0)
    target_BA = 0.5 * batch.action_BA
    with ray_session(RaySettings(cpus=5)):
        memory = MemoryLog()
        roles = build_roles(spec, memory)
        critic, policy = roles.critic, roles.policy
        assert critic is not None and roles.scorer is not None and roles.reference is not None
        before_BA = critic.values(batch)

        def learn(role: Any, objective: Any, steps: int) -> Any:
            columns = {"values": before_BA, "returns": target_BA, "advantages": target_BA}
            columns["sampler_logp"] = batch.sampler_logp_BA
            split = SplitSettings(ranks=role.ranks, rows=2)
            return role.update(
                train_steps(Experience(batch, columns), split, batch_size=8, epochs=steps, seed=0), objective
            )

        first = learn(critic, ValueObjective(clip=None), 1)
        last = learn(critic, ValueObjective(clip=None), 20)
        critic.save(folder / "critic")
        saved_BA = critic.values(batch)
        learn(critic, ValueObjective(clip=None), 1)
        moved_BA = critic.values(batch)
        critic.load(folder / "critic")

        base_BA = policy.logprobs(batch)
        learn(policy, PolicyObjective(), 3)
        answer = {
            "before": before_BA.tolist(),
            "errors": [first["error_square"].value, last["error_square"].value],
            "names": sorted(first),
            "saved": saved_BA.tolist(),
            "moved": moved_BA.tolist(),
            "loaded": critic.values(batch).tolist(),
            "scores": roles.scorer.scores([rollout.token_ids for rollout in rollouts()]),
            "base": base_BA.tolist(),
            "learned": policy.logprobs(batch).tolist(),
            "reference": roles.reference.logprobs(batch).tolist(),
            "memory": [[*at, peak.host] for at, peak in memory.peaks().items()],
        }
        big = token_batch(rollouts(LONG), pad_id=0)
        answer["out_of_memory"] = [refused(lambda: policy.logprobs(big)), killed(lambda: critic.values(big))]
        return answer


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::TrainWorker")]


def refused(work: Callable[[], Any]) -> list[str]:
    """What is raised where no rank may take 40 MB more than it has."""
    for process in workers():
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (held,) = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")]
        process.rlimit(psutil.RLIMIT_DATA, (held + 40_000_000, psutil.RLIM_INFINITY))
    answer = raised_by(work)
    for process in workers():
        process.rlimit(psutil.RLIMIT_DATA, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    return answer


def killed(work: Callable[[], Any]) -> list[str] | None:
    """What is raised where the kernel kills the ranks; None where this user may not ask it to."""
    group = Path(f"/sys/fs/cgroup/memory/openrlhf_ext_test_{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / "memory.limit_in_bytes").write_text("60000000")  # of what is taken from now on
        for process in workers():
            (group / "cgroup.procs").write_text(str(process.pid))
        return raised_by(work)
    finally:
        for process in workers():
            (group / "../cgroup.procs").write_text(str(process.pid))
        _remove(group)


def _remove(group: Path) -> None:
    """A group can go once the kernel has buried the last of its killed processes."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
    group.rmdir()


def raised_by(work: Callable[[], Any]) -> list[str]:
    from openrlhf_ext.errors import OutOfMemory

    try:
        work()
    except OutOfMemory as error:
        return [error.shortage.role, error.shortage.phase, str(error)]
    raise AssertionError("there was memory enough")


if __name__ == "__main__":
    prepare_environment(None, "127.0.0.1")
    folder = Path(sys.argv[1])
    (folder / "answer.json").write_text(json.dumps(measure(folder)))
