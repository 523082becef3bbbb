"""What the ranks of tests/contract/test_supervised_cuts.py do: an epoch of sft, rm and dpo, cut one way or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from engine_scenarios import VOCAB, engine_of
from torch import Tensor

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import inference_split, optimizer_step, scatter_rows
from openrlhf_ext.batch.types import Experience, TokenBatch
from openrlhf_ext.data.length_groups import StepOrder
from openrlhf_ext.data.preferences import PreferencePair
from openrlhf_ext.data.sft import SftExample
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import LoraSpec
from openrlhf_ext.ops.preference_loss import DpoLossSettings
from openrlhf_ext.track.reference_cache import ReferenceCache, model_digest
from openrlhf_ext.trainers.local import LocalRole
from openrlhf_ext.trainers.objectives import SftObjective
from openrlhf_ext.trainers.pairs import margin_column, pair_batch, pair_step
from openrlhf_ext.trainers.preference import DpoObjective, ScoreObjective
from openrlhf_ext.trainers.reference import BaseReference, CachedReference, ModelReference, Reference
from openrlhf_ext.trainers.shards import run_steps
from openrlhf_ext.types import Report

TASKS = ("sft", "rm", "dpo")
EXAMPLES, BATCH, PAD = 44, 8, 2  # the last step of an epoch is short
SPEC = EngineSpec(
    zero_stage=0, dtype="fp32", lr=3e-3, lr_scheduler="cosine_with_min_lr", warmup_ratio=0.1, total_steps=6,
    weight_decay=0.1, max_norm=1.0,
)  # fmt: skip
FROZEN = replace(SPEC, lr=0.0)
WHOLE = "micro-batches of 8"
CUTS = {
    WHOLE: SplitSettings(rows=8),
    "micro-batches of 1": SplitSettings(rows=1),
    "packed to a budget of tokens": SplitSettings(max_tokens=150, packed=True),
}
TWO_RANKS = {"two ranks": SplitSettings(ranks=2, rows=2)}
OBJECTIVES: dict[str, Any] = {
    "sft": SftObjective(),
    "rm": ScoreObjective(margin=True),
    "dpo": DpoObjective(DpoLossSettings(beta=0.5, nll_coef=0.1)),
}
HEAD = {"kind": "reward", "new_head": True}


def counted(draw: Random, start: int, by: int, most: int) -> tuple[int, ...]:
    """Tokens that go up (or down) by some number: what follows can be learned."""
    return tuple(3 + (start + by * i) % (VOCAB - 3) for i in range(draw.randint(1, most)))


def examples_of(task: str) -> list[Any]:
    draw = Random(5)
    rows: list[Any] = []
    for number in range(EXAMPLES):
        prompt = counted(draw, draw.randrange(VOCAB), 1, 20)
        chosen = (*counted(draw, prompt[-1] - 2, 1, 30), 1)
        rejected = (*counted(draw, draw.randrange(VOCAB), 7, 30), 1)
        if task == "sft":
            mask = (False,) * len(prompt) + (True,) * len(chosen)
            rows.append(SftExample(str(number), prompt + chosen, mask))
        else:
            rows.append(PreferencePair(str(number), prompt, chosen, rejected, margin=draw.random()))
    return rows


def batches_of(task: str) -> list[tuple[Sequence[Any], TokenBatch]]:
    """The steps of an epoch, each as its examples and their batch; lengths are grouped over pairs of steps."""
    rows = examples_of(task)
    sides = [[row] if task == "sft" else [row.chosen, row.rejected] for row in rows]
    lengths = [tuple(len(side.token_ids) for side in both) for both in sides]
    order = StepOrder(lengths, batch_size=BATCH, seed=3, window=2)
    parts = [[rows[index] for index in order.rows(step)] for step in range(order.steps_per_epoch)]
    return [(part, token_batch(part, PAD) if task == "sft" else pair_batch(part, PAD)) for part in parts]


def epoch(path: Path, device: Device, task: str, split: SplitSettings, spec: EngineSpec = SPEC) -> list[Report]:
    """This rank's report of each step of one epoch."""
    model = HEAD if task == "rm" else {}
    engine = engine_of(path, device, spec, packing=split.packed, **model)
    split = replace(split, unit=1 if task == "sft" else 2)
    batches, columns = batches_of(task), [{}] * EXAMPLES
    if task == "rm":
        columns = [{"margin": margin_column(pairs, batch)} for pairs, batch in batches]
    elif task == "dpo":
        columns = [{"ref_logp": logprobs(engine, batch, split)} for _, batch in batches]
    reports = []
    for (_, batch), given in zip(batches, columns, strict=False):
        step = optimizer_step(Experience(batch, given), range(batch.rows), split)
        reports.append(run_steps(engine, [step[engine.rank]], OBJECTIVES[task]))
    return reports


def logprobs(engine: Any, batch: TokenBatch, split: SplitSettings) -> Tensor:
    """Of a whole batch, by every rank: what a sharded model is asked, it is asked by all."""
    (asked,) = inference_split(batch, replace(split, ranks=1, unit=1))
    micros = asked.micro_batches
    return scatter_rows(micros, [engine.forward(micro) for micro in micros], *batch.action_BA.shape)


def one_rank(rank: int, world_size: int, device: Device, path: Path, folder: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {"trained": {}, "frozen": {}}
    for task in TASKS:
        for name, split in CUTS.items():
            answer["trained"][task, name] = epoch(path, device, task, split)
            answer["frozen"][task, name] = epoch(path, device, task, split, FROZEN)
    return answer | {"references": references(path, device, folder)}


def two_ranks(rank: int, world_size: int, device: Device, path: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {"trained": {}, "frozen": {}}
    for task in TASKS:
        for name, split in TWO_RANKS.items():
            answer["trained"][task, name] = epoch(path, device, task, split, replace(SPEC, zero_stage=3))
            answer["frozen"][task, name] = epoch(path, device, task, split, replace(FROZEN, zero_stage=3))
    return answer


# --- dpo's reference -----------------------------------------------------------------------------------------


def references(path: Path, device: Device, folder: Path) -> dict[str, dict[str, Any]]:
    """The losses of an epoch of dpo by where it starts and where its reference comes from."""
    lora = {"lora": LoraSpec(rank=4, alpha=8)}
    batches = [batch for _, batch in batches_of("dpo")]

    def role(at: Path, **model: Any) -> LocalRole:
        return LocalRole(engine_of(at, device, SPEC, **model), CUTS[WHOLE])

    def second(at: Path, **model: Any) -> Reference:
        engine = engine_of(at, device, replace(SPEC, trainable=False), **model)
        return ModelReference(LocalRole(engine, SplitSettings(rows=3)))

    def cached(model: LocalRole, at: Path) -> Reference:
        """As a resumed run finds it: on the disk."""
        digest = model_digest(at)
        CachedReference.fill(ReferenceCache(folder / "cache", digest), model, batches, lambda done, total: None)
        found = ReferenceCache(folder / "cache", digest)
        assert len(found) == 2 * EXAMPLES
        return CachedReference(found)

    def losses(model: LocalRole, reference: Reference) -> list[float]:
        found = []
        for batch in batches:
            step = pair_step(batch, {"ref_logp": reference.column(batch)}, CUTS[WHOLE], 1)
            found.append(model.update([step], DpoObjective(DpoLossSettings(beta=0.5)))["loss"].value)
        return found

    before = role(path, **lora)
    losses(before, BaseReference(before))
    before.export_adapters(folder / "adapters")
    before.export(folder / "merged")
    starts: dict[str, tuple[dict[str, Any], Path]] = {
        "all weights": ({}, path),
        "new adapters": (lora, path),
        "continued adapters": (lora | {"adapters": str(folder / "adapters")}, folder / "merged"),
    }
    answer: dict[str, dict[str, Any]] = {}
    for name, (model, same) in starts.items():
        answer[name] = {}
        for way in ("second model", "cached", "base"):
            trained = role(path, **model)
            if way == "base" and not model:
                continue  # without adapters nothing of the start is kept
            reference: Reference
            if way == "base":
                reference = BaseReference(trained)
            elif way == "cached":
                reference = cached(trained, same)
            else:
                reference = second(same)
            answer[name][way] = losses(trained, reference)
    whole, quantised = (second(path, load_in_4bit=half).column(batches[0]) for half in (False, True))
    pairs_2N = torch.stack([whole, quantised])[:, batches[0].action_BA]
    gap = float((pairs_2N[0] - pairs_2N[1]).abs().mean())
    return answer | {"quantised": {"gap": gap, "correlation": float(torch.corrcoef(pairs_2N)[0, 1])}}
