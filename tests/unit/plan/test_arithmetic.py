"""The planner's counts against the sources, schedules and settings that a run counts by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_ext.cli.rl_run import _schedule
from openrlhf_ext.config import COMMANDS, replaced
from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.engine.optimizer import build_schedule
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.plan.arithmetic import arithmetic_of, fires
from openrlhf_ext.plan.types import Arithmetic, DataSize, Hardware, Setup
from openrlhf_ext.trainers.rl import RLSettings
from openrlhf_ext.types import Prompt, Sampling

Command = Literal["sft", "rm", "dpo", "rl"]
SIZES = st.integers(1, 40)


def setup(command: Command, rows: int | None, values: dict[str, Any], **data: Any) -> Setup:
    size = DataSize(rows, data.pop("mean_tokens", None), max_tokens=512, how="given", **data)
    return Setup(command, replaced(COMMANDS[command](), values), Hardware(None, 1), size, models=())


def plan(command: Command, rows: int | None, values: dict[str, Any], **data: Any) -> Arithmetic:
    return arithmetic_of(setup(command, rows, values, **data))


@pytest.mark.parametrize(("batch", "steps"), [(128, 1256), (256, 628)])
def test_hh_rlhf(batch: int, steps: int) -> None:
    """160,791 = 1,256 x 128 + 23 = 628 x 256 + 23."""
    got = plan("rm", 160_791, {"train.batch_size": batch}, mean_tokens=260.0)
    assert (got.steps_per_epoch, got.leftover_rows, got.steps_total) == (steps, 23, steps + 1)
    assert got.effective_batch == batch
    assert got.tokens_per_step == batch * 2 * 260


def test_638_prompts_at_a_rollout_batch_of_64() -> None:
    """Nine full rollout steps and one of 62; a checkpoint every 50 steps comes at the end alone."""
    values = {
        "rollout.batch_size": 64,
        "train.batch_size": 16,
        "ckpt.save_steps": 50,
        "rollout.n_samples_per_prompt": 1,
    }
    got = plan("rl", 638, values, mean_tokens=1000.0)
    assert (got.steps_per_epoch, got.leftover_rows, got.steps_total) == (9, 62, 10)
    assert got.optimizer_steps == 9 * 4 + 4  # 62 rollouts are four batches of 16 as well, the last of 14
    assert got.saves == 1
    assert got.tokens_per_step == 64_000
    assert plan("rl", 638, values | {"data.drop_last": True}).steps_total == 9


@settings(deadline=None, max_examples=200)
@given(
    prompts=st.integers(1, 300),
    batch=SIZES,
    rounds=st.integers(1, 3),
    episodes=st.integers(1, 4),
    samples=st.integers(1, 5),
    train_batch=SIZES,
    epochs=st.integers(1, 3),
    freezing=st.integers(-1, 30),
    drop_last=st.booleans(),
)
def test_rl_counts_what_the_source_hands_out_and_the_schedule_is_made_for(
    prompts: int,
    batch: int,
    rounds: int,
    episodes: int,
    samples: int,
    train_batch: int,
    epochs: int,
    freezing: int,
    drop_last: bool,
) -> None:
    drop_last = drop_last and prompts >= batch  # else the source refuses
    values = {
        "rollout.batch_size": batch,
        "rollout.vllm_generate_batch_size": batch * rounds,
        "rollout.n_samples_per_prompt": samples,
        "train.batch_size": train_batch,
        "train.num_episodes": episodes,
        "train.max_epochs": epochs,
        "critic.freezing_steps": freezing,
        "data.drop_last": drop_last,
    }
    planned = setup("rl", prompts, values)
    cfg = planned.config
    source = PromptSource(
        [Prompt(str(i), (1,), "") for i in range(prompts)],
        batch_size=batch,
        round_size=cfg.rollout.vllm_generate_batch_size,
        episodes=episodes,
        drop_last=drop_last,
    )
    sizes: list[int] = []  # of the steps, which a round is cut into
    while (drawn := source.next_batch()) is not None:
        left = len(drawn.prompts)
        sizes += [min(batch, left - start) for start in range(0, left, batch)]
    got = arithmetic_of(planned)
    assert got.steps_total == len(sizes)
    assert got.steps_per_epoch == sum(size == batch for size in sizes) / episodes

    rl = RLSettings(seed=1, pad_id=0, sampling=Sampling(n=samples), split=None, batch_size=train_batch, epochs=epochs)  # type: ignore[arg-type]
    by_step = [rl.optimizer_steps(size * samples) for size in sizes]
    assert got.optimizer_steps == sum(by_step[max(freezing, 0) :])
    frozen = replace(rl, value_objective=object(), freezing_steps=max(freezing, 0))  # type: ignore[arg-type]
    schedule = _schedule(prompts, cfg, frozen, players=1)
    assert max(got.optimizer_steps, 1) == schedule.policy
    assert got.warmup_steps == _warmup(schedule.policy, cfg.actor.lr_warmup_ratio)


def _warmup(total: int, ratio: float) -> int:
    """Steps until the real schedule has risen to the whole rate."""
    import torch

    spec = EngineSpec(lr=1.0, lr_scheduler="constant_with_warmup", warmup_ratio=ratio, total_steps=total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(spec)(optimizer)
    steps = 0
    while schedule.get_last_lr()[0] < 1.0:
        optimizer.step()
        schedule.step()
        steps += 1
    return steps


@given(total=st.integers(0, 200), every=st.lists(st.integers(-1, 30), max_size=3))
def test_what_is_due_is_counted_as_it_falls(total: int, every: list[int]) -> None:
    steps = {step for step in range(1, total + 1) if step == total or any(p > 0 and step % p == 0 for p in every)}
    assert fires(total, every) == len(steps)


@pytest.mark.parametrize("command", ["sft", "rm", "dpo", "rl"])
def test_without_rows_there_are_no_steps(command: Command) -> None:
    got = plan(command, None, {}, mean_tokens=100.0)
    assert (got.steps_total, got.saves, got.evals, got.logs, got.warmup_steps) == (None,) * 5
    assert got.effective_batch > 0 and got.tokens_per_step


def test_nothing_is_saved_where_nothing_is_to_be_written() -> None:
    assert plan("rl", 100, {"ckpt.disable_ds": True, "ckpt.save_steps": 1}).saves == 0
    assert plan("rl", 100, {"ckpt.disable_ds": True, "ckpt.save_hf": True}).saves == 1


def test_tokens_of_a_step_are_those_of_the_rows_there_are() -> None:
    assert plan("sft", 5, {"train.batch_size": 8}, mean_tokens=10.0).tokens_per_step == 50
    assert plan("sft", 50, {"train.batch_size": 8}, mean_tokens=10.0).tokens_per_step == 80
    assert plan("dpo", 50, {"train.batch_size": 8}, mean_tokens=10.0).tokens_per_step == 160


def test_a_run_of_very_many_steps_is_counted_at_once() -> None:
    got = plan("sft", 10**9, {"train.batch_size": 1, "ckpt.save_steps": 1000, "train.max_epochs": 3})
    assert got.saves == 3 * 10**6
    assert got.warmup_steps == math.ceil(3 * 10**9 * 0.03)
