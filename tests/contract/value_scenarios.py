"""What the ranks of tests/contract/test_value_engine.py do, and the plain torch loop they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from engine_scenarios import SPEC, cut, denominators, engine_of, full_weights, micro_batches, rows
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.device import Device
from openrlhf_ext.models.spec import LoraSpec
from openrlhf_ext.types import Metric, merge_reports

STEPS = 2
VALUE_SPEC = replace(SPEC, lr_scheduler="constant", warmup_ratio=0.0, seed=21)
EXPORTED = ("whole", "sharded", "adapters")


@dataclass(frozen=True, slots=True)
class Squared:
    """The squared distance of the values from the column `advantages`, which is random here."""

    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(self, output: Any, micro: MicroBatch, denominators: Denominators) -> tuple[Tensor, dict[str, Metric]]:
        error_BA = (output[0] - micro.columns["advantages"]) * micro.action_BA
        loss = error_BA.square().sum() / denominators.tokens
        return loss, {"loss": Metric(float(loss.detach()), reduction="sum")}


def plain_values(model: Any, batch: MicroBatch) -> Tensor:
    """Token by token: the whole row's hidden states, the head, the token before each action."""
    values_BA = torch.zeros(batch.action_BA.shape)
    for row, length in enumerate(batch.lengths_B.tolist()):
        hidden_TH = model.model(batch.tokens_BT[row : row + 1, :length]).last_hidden_state[0]
        for action in batch.action_BA[row].nonzero().flatten().tolist():
            values_BA[row, action] = model.score(hidden_TH[action])[0]
    return values_BA


def plain_training(path: Path, head: Tensor) -> dict[str, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    model.score.weight.data.copy_(head)
    decayed, kept = ([p for p in model.parameters() if (p.dim() > 1) == large] for large in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": SPEC.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=SPEC.lr, betas=SPEC.betas, eps=SPEC.eps,
    )  # fmt: skip
    with torch.no_grad():
        before_BA = plain_values(model, rows(0))
    losses = []
    for step in range(STEPS):
        batch = rows(step)
        error_BA = (plain_values(model, batch) - batch.columns["advantages"]) * batch.action_BA
        loss = error_BA.square().sum() / denominators(batch).tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SPEC.max_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        after_BA = plain_values(model, rows(0))
    return {"before": before_BA, "after": after_BA, "losses": losses, "weights": model.state_dict()}


def learn(engine: Any) -> dict[str, Any]:
    before_BA = engine.forward(rows(0))
    losses = []
    for step in range(STEPS):
        batch = rows(step)
        micros = micro_batches(batch, engine.rank, engine.world_size)
        reports = [engine.forward_backward(micro, Squared(), denominators(batch)) for micro in micros]
        losses.append(merge_reports([*reports, engine.step()])["loss"].value)
    return {"before": before_BA, "after": engine.forward(rows(0)), "losses": losses, "weights": full_weights(engine)}


def critic_and_reward_model(
    rank: int, world_size: int, device: Device, path: Path, scorer: Path, folder: Path
) -> dict[str, Any]:
    answer: dict[str, Any] = {"scores": {}}
    ways: dict[str, tuple[int, dict[str, Any]]] = {
        "whole": (0, {}),
        "sharded": (3, {}),
        "sharded packing": (3, {"packing": True, "gradient_checkpointing": True}),
        "adapters": (3, {"lora": LoraSpec(rank=2)}),
    }
    for way, (stage, fields) in ways.items():
        engine = engine_of(path, device, replace(VALUE_SPEC, zero_stage=stage), kind="value", **fields)
        answer[way] = learn(engine)
        if way in EXPORTED:
            engine.export(folder / f"{way}-{world_size}")
    for stage in (0, 3):
        frozen = replace(VALUE_SPEC, zero_stage=stage, trainable=False)
        engine = engine_of(scorer, device, frozen, kind="reward")
        answer["scores"][stage] = engine.forward(cut(rows(0), 0, 8))
    return answer
