"""The supervised loop: batches of examples, one optimizer step each, evaluate, log, save.

What an example is, and how a batch of them becomes an optimizer step, is the caller's: the loop is the
same for every supervised objective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import optimizer_step
from openrlhf_ext.batch.types import Experience, OptimizerStep, TokenBatch
from openrlhf_ext.errors import DataError
from openrlhf_ext.ports import LogprobRole, Objective, TrainRole
from openrlhf_ext.track.checkpoints import Checkpoint
from openrlhf_ext.trainers.journal import Journal
from openrlhf_ext.trainers.objectives import SftObjective
from openrlhf_ext.trainers.reports import under
from openrlhf_ext.types import Metric, merge_reports

Example = TypeVar("Example")
STATE = "state"
"""Folder of a checkpoint: what training goes on from. An exported model stands beside it."""
LONG = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))


class StepOrder(Protocol):
    """Which examples each step trains on (`data.length_groups.StepOrder`)."""

    @property
    def steps_per_epoch(self) -> int: ...

    def rows(self, step: int) -> list[int]:
        """The indices of the examples of a step, counted from 0 over all epochs."""
        ...


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """`data` is a digest of the examples and of what their order depends on: a checkpoint of others is refused."""

    epochs: int = 1
    objective: Objective = field(default_factory=SftObjective)
    data: Mapping[str, int | str] = field(default_factory=dict)


def train_supervised(
    settings: SupervisedSettings,
    order: StepOrder,
    examples: Sequence[Example],
    to_step: Callable[[Sequence[Example]], OptimizerStep],
    model: TrainRole,
    journal: Journal,
    *,
    resume: Checkpoint | None = None,
) -> int:
    """Train for `settings.epochs` passes, or until the journal says stop; returns the last step.

    A step is an optimizer step. The examples of a step depend on its number and nothing before, so a resumed run
    goes on exactly. Raises DataError where `resume` is of other data or another order.
    """
    position, step, total = dict(settings.data), 0, order.steps_per_epoch * settings.epochs
    if resume is not None:
        _check_same(resume.state["position"], position)
        model.load(resume.path / STATE)
        step = resume.step
    journal.begin(step, resume.state if resume else None)
    first = step
    while step < total and not journal.stopped:
        start = time.perf_counter()
        with journal.clock("batch"):
            rows = order.rows(step)
            update = to_step([examples[row] for row in rows])
        with journal.clock("update"):
            report = under("train", model.update([update], settings.objective))
        if step == first and total - step > 1:
            journal.note(_forecast(time.perf_counter() - start, total - step))
        step += 1
        tokens = float(sum(int(shard.share.block.lengths_B.sum()) for shard in update if shard.share.block.rows))
        figures = {
            "train/epoch": Metric(step / order.steps_per_epoch, reduction="last"),
            "train/examples": Metric(len(rows), reduction="sum"),
        }
        journal.end_step(
            step,
            merge_reports([report, figures]),
            last=step == total,
            tokens={"update": tokens},
            write=lambda folder: model.save(folder / STATE),
            state=lambda: {"position": position},
        )
    return step


def _forecast(seconds: float, steps: int) -> str:
    """The first step of a run has its largest micro-batch and warms everything up: the rest is seldom slower."""
    whole = seconds * steps
    unit, length = next((pair for pair in LONG if whole >= 2 * pair[1]), ("seconds", 1.0))
    return (
        f"the first step took {seconds:.3g} s: at most about {whole / length:.3g} {unit} at this rate for all {steps}"
    )


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


def _check_same(saved: Mapping[str, int | str], present: Mapping[str, int | str]) -> None:
    for name, value in present.items():
        if saved.get(name) != value:
            raise DataError(
                f"the checkpoint was written with {name.replace('_', ' ')} {saved.get(name)} and this run has {value}, "
                "so the examples would come in another order: give the same, or start anew without --ckpt.load_enable."
            )
