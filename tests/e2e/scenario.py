"""The run that the RL tests share: its input, its command line, and what it left on disk."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.track.rollouts import read_rollouts, rollout_path
from openrlhf_ext.types import RolloutGroup

PROMPTS, STEPS = 20, 6  # two episodes of 8 + 8 + 4 prompts
SHAPE = TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocab=260, max_positions=256)
UNREPEATABLE = ("seconds/", "memory/", "tokens_per_second/")

# As OpenRLHF 0.11.2 documents one: tensors, scores, extra logs.
REWARD = """\
import torch


def reward_func(queries, prompts, labels, **kwargs):
    assert len(queries) == len(prompts) == len(labels) == len(kwargs["difficulty"])
    answers = [query[len(prompt) :] for query, prompt in zip(queries, prompts)]
    digits = torch.tensor([sum(c.isdigit() for c in answer) / max(len(answer), 1) for answer in answers])
    right = torch.tensor([float(label in answer) for label, answer in zip(labels, answers)])
    return {"rewards": digits + right, "scores": right, "extra_logs": {"digits": digits}}
"""

FLAGS = shlex.split("""
--device cpu --ds.param_dtype fp32 --actor.model_name_or_path model --reward.remote_url reward.py
--data.prompt_dataset train.jsonl --data.label_key answer --data.max_len 48 --rollout.max_new_tokens 12
--rollout.batch_size 8 --rollout.n_samples_per_prompt 4 --rollout.micro_batch_size 8
--train.batch_size 16 --train.micro_batch_size 8 --train.num_episodes 2 --actor.adam.lr 3e-3
--algo.advantage.estimator reinforce --eval.dataset held_out.jsonl --ckpt.save_steps 2
""")
ONE_EACH = ["--actor.num_gpus_per_node", "1", "--ref.num_gpus_per_node", "1"]
"""Ranks, where a cluster is joined: a Ray of the run's own has one of each on a CPU."""


def prepare(folder: Path) -> Path:
    """A tiny model, prompts and a reward file in `folder`."""
    build_tiny_model(folder / "model", SHAPE)
    write_jsonl(folder / "train.jsonl", [row("train", i) for i in range(PROMPTS)])
    write_jsonl(folder / "held_out.jsonl", [row("held", i) for i in range(6)])
    (folder / "reward.py").write_text(REWARD)
    return folder


def row(kind: str, i: int) -> dict[str, Any]:
    a, b = i % 7, (3 * i) % 5
    return {"input": f"{kind}{i}: {a}+{b}=", "answer": str(a + b), "difficulty": a}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def output_to(name: str) -> list[str]:
    return ["--ckpt.output_dir", name, "--ckpt.path", f"{name}/checkpoints"]


@dataclass(frozen=True)
class Record:
    """What a run left in its output folder."""

    folder: Path

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far, a line that is just being written left out."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def steps(self) -> list[int]:
        return [line["step"] for line in self.metrics()]

    def repeatable(self, first: int = 0) -> list[dict[str, Any]]:
        """The lines from step `first` on, without what depends on the machine's load."""
        return [
            {name: value for name, value in line.items() if not name.startswith(UNREPEATABLE)}
            for line in self.metrics()
            if line["step"] >= first
        ]

    def rollouts(self, step: int) -> list[RolloutGroup]:
        return read_rollouts(rollout_path(self.folder / "rollouts", step))

    def rewards(self, step: int) -> list[float]:
        return [member.score.value for group in self.rollouts(step) for member in group.members]
