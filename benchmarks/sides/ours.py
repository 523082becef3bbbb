"""Our side: the command `openrlhf-ext rl` itself, held at the start of every step until it is its turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import Turn

from sides.gate import Gate
from sides.workload import Workload

EPISODES = 100_000
"""More than anyone will wait for: the gate ends the run."""

NAMES = {"estimate": "estimate, split"}
"""Phases whose names here say more."""


def flags(workload: Workload, out: Path) -> list[str]:
    """The command line of this workload."""
    given = {
        "actor.model_name_or_path": workload.model,
        "actor.num_gpus_per_node": 1,
        "actor.adam.lr": workload.lr,
        "actor.lr_scheduler": "constant",
        "actor.loss_agg_mode": "seq-mean-token-mean",
        "ref.num_gpus_per_node": 1,
        "reward.remote_url": Path(__file__).with_name("reward.py"),
        "algo.advantage.estimator": "group_norm",
        "algo.kl.init_coef": workload.kl_coef,
        "rollout.batch_size": workload.prompts,
        "rollout.n_samples_per_prompt": workload.samples,
        "rollout.max_new_tokens": workload.max_new_tokens,
        "rollout.temperature": 1.0,
        "rollout.micro_batch_size": workload.micro_batch,
        "train.batch_size": workload.rows,
        "train.micro_batch_size": workload.micro_batch,
        "train.num_episodes": EPISODES,
        "train.seed": workload.seed,
        "data.prompt_dataset": workload.prompt_file,
        "data.input_key": "prompt",
        "data.max_len": workload.max_len,
        "ds.zero_stage": workload.zero_stage,
        "ds.param_dtype": "fp32" if workload.dtype == "float32" else "bf16",
        "ckpt.output_dir": out,
        "ckpt.path": out / "checkpoints",
        "device.type": workload.device,
    }
    switches = ["--train.colocate_all", "--ckpt.disable_ds"]
    if workload.kl_coef:
        given["algo.kl.estimator"] = "k3"
        switches.append("--algo.kl.use_loss")
    if workload.device != "cpu":
        given["vllm.gpu_memory_utilization"] = workload.memory_share
        switches += ["--vllm.enable_sleep", "--ds.enable_sleep"]
    return switches + [word for name, value in given.items() for word in (f"--{name}", str(value))]


def serve(workload: Workload, gate: Gate) -> None:
    from openrlhf_ext.cli.train_ppo_ray import main
    from openrlhf_ext.data.source import PromptSource

    out = workload.folder / "ours"
    draw = PromptSource.next_batch

    def held(self: PromptSource) -> Any:
        if gate.running:
            seconds = gate.seconds()  # before anything is read back
            gate.finish(_turn(seconds, out))
        return None if gate.wait() is None else draw(self)

    PromptSource.next_batch = held  # type: ignore[method-assign]
    main(flags(workload, out))


def _turn(seconds: float, out: Path) -> Turn:
    """The step that has just ended, as the run's own files tell it."""
    from openrlhf_ext.track.rollouts import read_rollouts

    *_, line = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    phases = phases_of(json.loads(line), seconds)
    newest = max((out / "rollouts").glob("step-*.parquet"))
    rollouts = [member.rollout for group in read_rollouts(newest) for member in group.members]
    newest.unlink()
    answers = [(list(r.token_ids), r.response_length) for r in rollouts]
    return Turn(seconds, phases, [length for _, length in answers], answers)


def phases_of(metrics: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The step's phases from its line of metrics; what none of them covers is `rest`."""
    prefix = "seconds/"
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    found.pop("step", None)
    found["rest"] = seconds - sum(found.values())
    return {NAMES.get(name, name): value for name, value in found.items()}
