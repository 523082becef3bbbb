"""The supervised loop: batches of examples, one optimizer step each, evaluate, log, save.

What an example is, and how a batch of them becomes an optimizer step, is the caller's: the loop is the
same for every supervised objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import all_micro_batches, optimizer_step
from openrlhf_ext.batch.types import Experience, OptimizerStep, TokenBatch
from openrlhf_ext.errors import DataError
from openrlhf_ext.ports import LogprobRole, Objective, TrainRole
from openrlhf_ext.track.checkpoints import Checkpoint
from openrlhf_ext.trainers.journal import Journal
from openrlhf_ext.trainers.objectives import SftObjective
from openrlhf_ext.trainers.reports import under
from openrlhf_ext.types import Metric, derive_seed, merge_reports

Example = TypeVar("Example")


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """`batch_size` examples an optimizer step; the last short batch of an epoch is a step of its own."""

    seed: int
    batch_size: int
    epochs: int = 1
    objective: Objective = field(default_factory=SftObjective)

    def steps_per_epoch(self, examples: int) -> int:
        return math.ceil(examples / self.batch_size)

    def total_steps(self, examples: int) -> int:
        return self.steps_per_epoch(examples) * self.epochs


def train_supervised(
    settings: SupervisedSettings,
    examples: Sequence[Example],
    to_step: Callable[[Sequence[Example]], OptimizerStep],
    model: TrainRole,
    journal: Journal,
    *,
    resume: Checkpoint | None = None,
) -> int:
    """Train for `settings.epochs` passes; returns the last step. A step is an optimizer step.

    The examples of a step depend on (seed, step) and nothing before, so a resumed run goes on exactly.
    Raises DataError where `resume` is of other data or another batch size.
    """
    position = {"examples": len(examples), "batch_size": settings.batch_size, "seed": settings.seed}
    step = 0
    if resume is not None:
        _check_same(resume.state["position"], position)
        model.load(resume.path / "model")
        step = resume.step
    journal.begin(step, resume.state if resume else None)
    while step < settings.total_steps(len(examples)):
        with journal.clock("batch"):
            rows = rows_of_step(settings, len(examples), step)
            update = to_step([examples[row] for row in rows])
        with journal.clock("update"):
            report = under("train", model.update([update], settings.objective))
        step += 1
        tokens = float(sum(int(micro.lengths_B.sum()) for micro in all_micro_batches(update) if micro.rows))
        figures = {
            "train/epoch": Metric(step / settings.steps_per_epoch(len(examples)), reduction="last"),
            "train/examples": Metric(len(rows), reduction="sum"),
        }
        journal.end_step(
            step,
            merge_reports([report, figures]),
            last=step == settings.total_steps(len(examples)),
            tokens={"update": tokens},
            write=lambda folder: model.save(folder / "model"),
            state=lambda: {"position": position},
        )
    return step


def rows_of_step(settings: SupervisedSettings, examples: int, step: int) -> list[int]:
    """The indices that step (from 0) trains on: each epoch visits all, in an order of its own."""
    epoch, index = divmod(step, settings.steps_per_epoch(examples))
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "epoch", epoch))
    order = torch.randperm(examples, generator=generator).tolist()
    return order[index * settings.batch_size : (index + 1) * settings.batch_size]


def sft_step(batch: TokenBatch, split: SplitSettings, ranks: int) -> OptimizerStep:
    """One optimizer step that learns the batch's action tokens."""
    return optimizer_step(Experience(batch, {}), range(batch.rows), replace(split, ranks=ranks))


def sft_evaluation(model: LogprobRole, batches: Sequence[TokenBatch]) -> dict[str, float]:
    """`eval/loss`, the mean negative log-likelihood per learned token in nats, and `eval/perplexity`."""
    total = sum(float(model.logprobs(batch).double().sum()) for batch in batches)
    tokens = sum(int(batch.action_BA.sum()) for batch in batches)
    assert tokens, "an evaluation has tokens to predict"
    loss = -total / tokens
    return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}


def _check_same(saved: dict[str, int], present: dict[str, int]) -> None:
    for name, value in present.items():
        if saved[name] != value:
            raise DataError(
                f"the checkpoint was written with {name.replace('_', ' ')} {saved[name]} and this run has {value}, so "
                "the examples would come in another order: give the same, or start anew without --ckpt.load_enable."
            )
