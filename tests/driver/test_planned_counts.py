"""The planner's counts against loops that really run, over the in-memory ports."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from rl_job import SETTINGS as RL_SETTINGS
from rl_job import Job as RLJob
from test_supervised_loop import Job as SFTJob

from openrlhf_ext.config import COMMANDS, replaced
from openrlhf_ext.plan.arithmetic import arithmetic_of
from openrlhf_ext.plan.types import Arithmetic, DataSize, Hardware, Setup
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.trainers.journal import Cadence

EVERY = st.sampled_from([-1, 1, 2, 3, 4, 7])
RUNS = settings(deadline=None, max_examples=15)


def planned(command: Any, rows: int, values: dict[str, Any]) -> Arithmetic:
    config = replaced(COMMANDS[command](), values)
    return arithmetic_of(Setup(command, config, Hardware(None, 1), DataSize(rows, None, 64, how="given"), models=()))


def cadence(log: int, evaluate: int, save: int, evaluates: bool) -> tuple[Cadence, dict[str, Any]]:
    values: dict[str, Any] = {"logger.logging_steps": max(log, 1), "ckpt.save_steps": save, "eval.steps": evaluate}
    values |= {"eval.dataset": "held_out.jsonl"} if evaluates else {}
    return Cadence(max(log, 1), max(evaluate, 0), max(save, 0)), values


@RUNS
@given(st.integers(1, 23), st.integers(1, 8), st.integers(1, 3), EVERY, EVERY, EVERY, st.booleans())
def test_the_supervised_loop(
    rows: int, batch: int, epochs: int, log: int, evaluate: int, save: int, evaluates: bool
) -> None:
    when, values = cadence(log, evaluate, save, evaluates)
    with tempfile.TemporaryDirectory() as folder:
        job = SFTJob(
            Path(folder),
            batch_size=batch,
            epochs=epochs,
            examples=rows,
            cadence=when,
            evaluates=evaluates,
        )
        with patch.object(CheckpointStore, "save", autospec=True, side_effect=CheckpointStore.save) as save_called:
            steps = job.run()
    plan = planned("sft", rows, values | {"train.batch_size": batch, "train.max_epochs": epochs})
    assert plan.steps_total == steps == plan.optimizer_steps
    assert plan.steps_per_epoch == sum(len(each) == batch for each in job.batches) / epochs
    assert plan.leftover_rows == (len(job.batches[steps // epochs - 1]) % batch)
    assert plan.saves == save_called.call_count
    assert plan.evals == len(job.metric("eval/loss"))
    assert plan.logs == len(job.tracker.lines)


@RUNS
@given(st.integers(1, 14), st.integers(1, 5), st.integers(1, 2), st.integers(1, 12), EVERY, EVERY, EVERY, st.booleans())
def test_the_rl_loop(
    prompts: int, batch: int, episodes: int, train_batch: int, log: int, evaluate: int, save: int, evaluates: bool
) -> None:
    when, values = cadence(log, evaluate, save, evaluates)
    with tempfile.TemporaryDirectory() as folder:
        job = RLJob(
            Path(folder),
            settings=replace(RL_SETTINGS, batch_size=train_batch),
            prompts=prompts,
            prompt_batch=batch,
            episodes=episodes,
            cadence=when,
            evaluates=evaluates,
        )
        steps = job.run()
    values |= {
        "rollout.batch_size": batch,
        "rollout.n_samples_per_prompt": RL_SETTINGS.sampling.n,
        "train.batch_size": train_batch,
        "train.num_episodes": episodes,
    }
    plan = planned("rl", prompts, values)
    assert plan.steps_total == steps
    assert plan.optimizer_steps == sum(job.metric("policy/optimizer_steps"))
    assert plan.saves == job.calls.count("save")
    assert plan.evals == len(job.metric("eval/held_out/reward"))
    assert plan.logs == len(job.tracker.lines)
