"""What the ranks of test_recorded_rollouts.py do: real engines on rollouts that a run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import train_steps
from openrlhf_ext.batch.types import Experience, OptimizerStep, Signals
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.track.rollouts import read_rollouts, rollout_path
from openrlhf_ext.trainers.experience import estimate
from openrlhf_ext.trainers.objectives import PolicyObjective
from openrlhf_ext.trainers.settings import RLSettings
from openrlhf_ext.trainers.shards import run_steps
from openrlhf_ext.types import Sampling

STEPS = 3
OBJECTIVE = PolicyObjective(entropy_coef=0.01)
SPLITS = {
    "rows 1": SplitSettings(rows=1),
    "rows 3": SplitSettings(rows=3),
    "rows 8": SplitSettings(rows=8),
    "all": SplitSettings(rows=32),
    "100 tokens": SplitSettings(max_tokens=100),
    "64 tokens, packed": SplitSettings(max_tokens=64, packed=True),
}


def experience(rollouts: Path, step: int) -> Experience:
    """Recorded samples with group-normalised rewards, off-policy by the steps that lie between."""
    groups = read_rollouts(rollout_path(rollouts, step))
    batch = token_batch([member.rollout for group in groups for member in group.members], pad_id=0)
    settings = RLSettings(
        seed=1, pad_id=0, sampling=Sampling(), split=SplitSettings(rows=8), batch_size=batch.rows,
        advantage=AdvantageSettings(estimator="group_norm"),
    )  # fmt: skip
    return estimate(groups, batch, Signals(old_logp_BA=batch.sampler_logp_BA), settings)


def whole_step(rollouts: Path, step: int, split: SplitSettings) -> OptimizerStep:
    recorded = experience(rollouts, step)
    (only,) = train_steps(recorded, split, batch_size=recorded.batch.rows, seed=step)
    return only


def engine_of(model: Path, device: Device, stage: int, *, packing: bool = False) -> Any:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine

    spec = EngineSpec(zero_stage=stage, dtype="fp32", lr=3e-3, lr_scheduler="constant", total_steps=STEPS)  # type: ignore[arg-type]
    return DeepSpeedEngine(ModelSpec(str(model), dtype="fp32", packing=packing), spec, device)


def three_steps(
    rank: int, ranks: int, device: Device, model: Path, rollouts: Path, stage: int
) -> list[dict[str, float]]:
    """The reports of this rank's three optimizer steps."""
    engine = engine_of(model, device, stage)
    reports = []
    for step in range(1, STEPS + 1):
        shard = whole_step(rollouts, step, SplitSettings(rows=8, ranks=ranks))[rank]
        reports.append(run_steps(engine, [shard], OBJECTIVE))
    return reports


def one_rank(rank: int, ranks: int, device: Device, model: Path, rollouts: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {"steps": three_steps(rank, ranks, device, model, rollouts, stage=0), "gradients": {}}
    for name, split in SPLITS.items():
        engine = engine_of(model, device, 0, packing=split.packed)
        (shard,) = whole_step(rollouts, 1, split)
        for micro in shard.micro_batches:
            engine.forward_backward(micro, OBJECTIVE, shard.denominators)
        gradient = torch.cat([parameter.grad.double().flatten() for parameter in engine.model.parameters()])
        answer["gradients"][name] = (len(shard.micro_batches), gradient)
    return answer


def two_sharded_ranks(rank: int, ranks: int, device: Device, model: Path, rollouts: Path) -> list[dict[str, float]]:
    return three_steps(rank, ranks, device, model, rollouts, stage=3)
