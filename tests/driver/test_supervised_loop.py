"""The supervised loop over an in-memory engine: steps, epochs, resume, evaluation, learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from fakes import PAD, BigramEngine, MemoryTracker, SilentLine

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.types import OptimizerStep
from openrlhf_ext.condition import parse_condition
from openrlhf_ext.data.length_groups import StepOrder
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.trainers.journal import Cadence, Journal
from openrlhf_ext.trainers.local import LocalRole
from openrlhf_ext.trainers.supervised import (
    SupervisedSettings,
    sft_evaluation,
    sft_step,
    train_supervised,
)
from openrlhf_ext.types import Rollout


def example(number: int) -> Rollout:
    """A cycle 1 2 3 4 1 2 ... of some length, of which all but the first token are learned."""
    tokens = tuple(1 + (number + i) % 4 for i in range(3 + number % 5))
    return Rollout(
        prompt_id=f"row-{number}",
        sample=0,
        token_ids=tokens,
        action_mask=(False,) + (True,) * (len(tokens) - 1),
        logprobs=(0.0,) * len(tokens),
        text="",
        finish_reason="stop",
        versions=(0, 0),
    )


@dataclass
class Job:
    folder: Path
    epochs: int = 2
    batch_size: int = 4
    seed: int = 3
    examples: int = 10
    cadence: Cadence = field(default_factory=Cadence)
    split: SplitSettings = field(default_factory=lambda: SplitSettings(rows=2))
    evaluates: bool = False
    killed_in_step: int | None = None
    lr: float = 1.0
    stopped_in_step: int | None = None
    until: str | None = None

    def run(self, resume: bool = False) -> int:
        self.tracker = MemoryTracker()
        self.engine = BigramEngine(self.lr)
        self.line = SilentLine()
        self.store = CheckpointStore(self.folder / "ckpt")
        self.batches: list[list[str]] = []
        role = LocalRole(self.engine, self.split)
        held_out = token_batch([example(number) for number in range(100, 108)], PAD)

        def to_step(examples: Sequence[Rollout]) -> OptimizerStep:
            self.batches.append([each.prompt_id for each in examples])
            if len(self.batches) == self.killed_in_step:
                raise KeyboardInterrupt
            return sft_step(token_batch(examples, PAD), self.split, role.ranks)

        examples = [example(number) for number in range(self.examples)]
        self.journal = journal = Journal(
            self.cadence,
            tracker=self.tracker,
            line=self.line,
            store=self.store,
            evaluate=(lambda step: sft_evaluation(role, [held_out])) if self.evaluates else None,
            stop=lambda: len(self.batches) == self.stopped_in_step,
            until=parse_condition(self.until) if self.until else None,
        )
        checkpoint = self.store.latest() if resume else None
        lengths = [(len(each.token_ids),) for each in examples]
        order = StepOrder(lengths, batch_size=self.batch_size, seed=self.seed)
        settings = SupervisedSettings(self.epochs, data={"batch_size": self.batch_size, "examples": self.examples})
        return train_supervised(settings, order, examples, to_step, role, journal, resume=checkpoint)

    def metric(self, name: str) -> list[float]:
        return [values[name] for _, values in self.tracker.lines if name in values]

    @property
    def trace(self) -> list[tuple[int, dict[str, float]]]:
        clocks = ("seconds/", "tokens_per_second/")
        lines = self.tracker.lines
        return [(step, {k: v for k, v in values.items() if not k.startswith(clocks)}) for step, values in lines]


def test_a_step_is_an_optimizer_step_and_every_epoch_visits_every_row(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.run() == 6  # 10 rows in batches of 4: three steps, the last of two rows
    assert [len(batch) for batch in job.batches] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*job.batches[:3])), list(chain(*job.batches[3:]))
    assert sorted(first) == sorted(second) == sorted(f"row-{i}" for i in range(10))
    assert first != second
    assert job.metric("train/epoch") == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


def test_it_learns(tmp_path: Path) -> None:
    job = Job(tmp_path, epochs=6, evaluates=True, lr=5.0)
    job.run()
    before, after = job.metric("eval/loss")
    assert before == pytest.approx(math.log(6), abs=0.2)
    assert after < 0.3
    assert job.metric("eval/perplexity")[-1] == pytest.approx(math.exp(after))
    assert job.metric("train/loss")[-1] < 0.3


@pytest.mark.parametrize("split", [SplitSettings(rows=1), SplitSettings(max_tokens=9), SplitSettings(rows=64)])
def test_micro_batches_do_not_change_what_is_learned(tmp_path: Path, split: SplitSettings) -> None:
    one, other = Job(tmp_path / "one"), Job(tmp_path / "other", split=split)
    one.run()
    other.run()
    torch.testing.assert_close(one.engine.table, other.engine.table)
    assert other.metric("train/loss") == pytest.approx(one.metric("train/loss"), rel=1e-5)


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_is_asked_to_stop_saves_that_step_and_goes_on_from_it(tmp_path: Path, step: int) -> None:
    whole = Job(tmp_path / "whole")
    whole.run()
    job = Job(tmp_path / "job", stopped_in_step=step)
    assert job.run() == step
    assert [found.step for found in job.store.checkpoints()] == [step]
    begun = job.trace
    job.stopped_in_step = None
    assert job.run(resume=True) == 6
    assert begun + job.trace == whole.trace


def test_a_run_ends_with_the_evaluation_that_reaches_its_goal_and_saves_it(tmp_path: Path) -> None:
    shape = {"cadence": Cadence(evaluate=2), "evaluates": True, "epochs": 6}
    whole = Job(tmp_path / "whole", **shape)
    assert whole.run() == 18
    losses = dict(zip([0, *range(2, 19, 2)], whole.metric("eval/loss"), strict=True))
    goal = next(step for step, loss in losses.items() if loss < 0.5)
    assert 2 < goal < 18
    job = Job(tmp_path / "job", until="eval_loss<0.5", **shape)
    assert job.run() == goal
    assert [found.step for found in job.store.checkpoints()] == [goal]
    reached = job.journal.reached
    assert reached is not None
    assert (reached.metric, reached.value, reached.step) == ("eval/loss", losses[goal], goal)
    assert job.metric("stop_when/reached") == [0.0] * (goal // 2) + [1.0]
    assert [{k: v for k, v in line.items() if not k.startswith("stop")} for _, line in job.trace] == [
        line for step, line in whole.trace if step <= goal
    ]
    (said,) = [note for note in job.line.notes if "stop_when" in note]
    assert f"eval/loss is {losses[goal]:.4g} after step {goal}" in said


def test_what_is_resumed_at_its_goal_says_so_and_a_further_goal_goes_on(tmp_path: Path) -> None:
    shape = {"cadence": Cadence(evaluate=2), "evaluates": True, "epochs": 6}
    job = Job(tmp_path, until="eval_loss<0.5", **shape)
    goal = job.run()
    job.epochs = 7  # more to do would be there
    assert job.run(resume=True) == goal
    assert not job.batches
    assert "is reached" in job.line.notes[-1]
    further = replace(job, until="eval_loss<0.2")
    assert goal < further.run(resume=True) < 21
    assert further.journal.reached is not None


def test_a_goal_that_is_there_before_the_first_step_needs_no_training(tmp_path: Path) -> None:
    job = Job(tmp_path, cadence=Cadence(evaluate=1), evaluates=True, until="perplexity<100")
    assert job.run() == 0
    assert not job.batches
    assert not job.store.checkpoints()
    assert job.tracker.lines[-1][1]["stop_when/reached"] == 1.0


def test_a_goal_of_a_figure_that_is_not_measured_is_refused_before_the_first_step(tmp_path: Path) -> None:
    job = Job(tmp_path, cadence=Cadence(evaluate=1), evaluates=True, until="eval_accuracy>=0.9")
    with pytest.raises(ConfigError, match=r"eval_accuracy>=0\.9.*there are eval/loss, eval/perplexity"):
        job.run()
    assert not job.batches


@pytest.mark.parametrize("killed_in_step", [3, 6])
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path: Path, killed_in_step: int) -> None:
    shape = {"cadence": Cadence(save=2, evaluate=2, best="loss", best_is_lowest=True), "evaluates": True}
    whole = Job(tmp_path / "whole", **shape)
    whole.run()
    broken = Job(tmp_path / "broken", killed_in_step=killed_in_step, **shape)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    checkpoint = broken.store.latest()
    assert checkpoint is not None
    resumed = replace(broken, killed_in_step=None)
    assert resumed.run(resume=True) == 6
    assert resumed.batches == whole.batches[checkpoint.step :]
    assert resumed.trace == [line for line in whole.trace if line[0] > checkpoint.step]
    assert bool((resumed.engine.table == whole.engine.table).all())


def test_the_lowest_loss_is_the_best(tmp_path: Path) -> None:
    cadence = Cadence(evaluate=1, best="loss", best_is_lowest=True)
    job = Job(tmp_path, cadence=cadence, evaluates=True, seed=1)
    job.run()
    best = job.store.best()
    assert best is not None
    losses = job.metric("eval/loss")
    assert best.step == losses.index(min(losses))


def test_a_resume_with_another_batch_size_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    with pytest.raises(DataError, match="batch size 4 and this run has 5"):
        replace(job, batch_size=5).run(resume=True)


def test_the_first_step_says_how_long_all_will_take(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    (forecast,) = [note for note in job.line.notes if "first step" in note]
    assert "for all 6" in forecast
