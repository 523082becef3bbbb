"""Dynamic filtering with refill, and rounds of generation that feed several steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import CountingReward
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from rl_job import SETTINGS, Job

from openrlhf_ext.trainers.journal import Cadence
from openrlhf_ext.types import Prompt, ScoreFailure

FILTERING = replace(SETTINGS, filter_range=(0.0, 1.0))


class EveryThirdIsTooHard(CountingReward):
    @staticmethod
    def marks(prompt: Prompt) -> float:
        return 0.0 if prompt.label % 3 == 0 else 0.5


class AllTooEasy(CountingReward):
    @staticmethod
    def marks(prompt: Prompt) -> float:
        return 1.0


def test_filtered_groups_are_replaced_and_counted(tmp_path: Path) -> None:
    job = Job(tmp_path, settings=FILTERING, reward=EveryThirdIsTooHard, prompts=14, episodes=1)
    job.run()
    steps = job.recorded()
    assert [len(step.groups) for step in steps] == [4, 4, 1]  # 14 less 5
    assert sum(len(step.filtered) for step in steps) == 5
    assert all(group.prompt.label % 3 == 0 for step in steps for group in step.filtered)
    for step, values in zip(steps, (values for _, values in job.tracker.lines), strict=True):
        kept, filtered = len(step.groups), len(step.filtered)
        assert values["rollout/prompts"] == kept
        assert values["rollout/filtered_groups"] == filtered
        assert values["rollout/consumed"] == kept + filtered
        assert values["rollout/passed"] == kept / (kept + filtered)
        assert values["rollout/samples"] == 4 * kept
    rows = {row for micro in job.policy.updates[0][0][0].micro_batches for row in micro.rows}
    assert len(rows) == 16


def test_a_replacement_is_another_prompt_of_the_same_weights_and_is_sampled_with_those_that_are_missing(
    tmp_path: Path,
) -> None:
    job = Job(tmp_path, settings=FILTERING, reward=EveryThirdIsTooHard, prompts=12, episodes=1)
    job.run()
    rounds = [int(call.split()[1].split("x")[0]) for call in job.calls if call.startswith("generate")]
    assert rounds[0] == 4
    first = job.calls[1 : job.calls.index("publish 1")]
    consumed = len(job.recorded()[0].groups) + len(job.recorded()[0].filtered)
    assert sum(int(call.split()[1].split("x")[0]) for call in first if call.startswith("generate")) == consumed
    assert {m.rollout.versions for g in job.recorded()[0].groups for m in g.members} == {(0, 0)}


def test_the_filter_is_strict_at_both_ends_and_looks_at_rewards_where_there_are_no_marks(tmp_path: Path) -> None:
    job = Job(tmp_path, settings=replace(SETTINGS, filter_range=(0.1, 0.2)), prompts=40, prompt_batch=4, episodes=1)
    job.run()
    means = [
        (sum(m.score.value for m in group.members) / 4, kept)
        for step in job.recorded()
        for groups, kept in ((step.groups, True), (step.filtered, False))
        for group in groups
    ]
    assert {kept for _, kept in means} == {True, False}
    assert all(kept == (0.1 < mean < 0.2) for mean, kept in means)
    easy = Job(tmp_path / "easy", settings=FILTERING, reward=AllTooEasy, episodes=1)
    easy.run()
    assert easy.metric("rollout/filtered_groups") == [8.0]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_last_draw_of_which_nothing_passes_still_evaluates_logs_and_saves(tmp_path: Path, lag: int) -> None:
    settings = replace(FILTERING, max_lag=lag)
    job = Job(
        tmp_path, settings=settings, reward=AllTooEasy, episodes=2, evaluates=True, cadence=Cadence(log=5, evaluate=5)
    )
    assert job.run() == 2  # an epoch each
    assert [step for step, _ in job.tracker.lines] == [0, 2]
    assert job.metric("eval/held_out/reward")[0] == job.metric("eval/held_out/reward")[1]
    assert job.metric("rollout/consumed") == [16.0]
    assert job.metric("policy/optimizer_steps") == [0.0]
    assert [found.step for found in job.store.checkpoints()] == [2]
    assert len([note for note in job.line.notes if "no group is left" in note]) == 2


def test_failed_groups_are_replaced_too_where_groups_are_filtered(tmp_path: Path) -> None:
    failing = {f"default-{i}": ScoreFailure("timeout", "slow") for i in (1, 4, 7)}
    job = Job(tmp_path, settings=FILTERING, reward=EveryThirdIsTooHard, prompts=15, episodes=1, failing=failing)
    job.run()
    assert [len(step.groups) for step in job.recorded()] == [4, 3]  # 15 less 5 filtered and 3 failed
    assert sum(job.metric("rollout/failed_groups")) == 3.0
    assert sum(job.metric("rollout/consumed")) == 15.0
    unfiltered = Job(tmp_path / "all", prompts=15, episodes=1, failing=failing)
    unfiltered.run()
    assert unfiltered.metric("rollout/prompts") == [4.0, 4.0, 4.0, 3.0]
    assert sum(len(step.groups) for step in unfiltered.recorded()) == 12


def test_a_round_feeds_several_steps_and_they_grow_old(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=20, prompt_batch=4, round_size=8, episodes=1)
    assert job.run() == 5
    assert [call for call in job.calls if call.startswith("generate")] == [
        "generate 8x4",
        "generate 8x4",
        "generate 4x4",
    ]
    assert job.metric("rollout/staleness_max") == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert job.metric("rollout/prompts") == [4.0] * 5
    assert all(values["mismatch/abs_max"] > 0.0 for step, values in job.tracker.lines if step in (2, 4))


@example_settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 9),
    batch=st.integers(1, 4),
    rounds=st.integers(1, 3),
    lag=st.integers(0, 3),
    filtering=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_prompt_once_an_epoch_and_never_older_than_allowed(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    batch: int,
    rounds: int,
    lag: int,
    filtering: bool,
    seed: int,
) -> None:
    settings = replace(
        FILTERING if filtering else SETTINGS, max_lag=lag, seed=seed, sampling=replace(SETTINGS.sampling, n=2)
    )
    job = Job(
        tmp_path_factory.mktemp("job"),
        settings=settings,
        reward=EveryThirdIsTooHard,
        prompts=count,
        prompt_batch=batch,
        round_size=batch * rounds,
    )
    job.run()
    steps = job.recorded()
    consumed = [(step.epoch, g.prompt.id) for step in steps for g in (*step.groups, *step.filtered)]
    assert Counter(consumed) == Counter({(epoch, f"default-{i}"): 1 for epoch in (0, 1) for i in range(count)})
    if not filtering:
        assert not any(step.filtered for step in steps)
        assert len(steps) == 2 * -(-count // batch)
    for step, following in pairwise(steps):
        assert len(step.groups) == batch or following.epoch > step.epoch  # replaced one for one while there are any
    assert all(len(step.groups) <= batch for step in steps)
    assert sum(job.metric("rollout/consumed")) == len(consumed)
    assert max(job.metric("rollout/staleness_max"), default=0.0) <= lag + rounds - 1
    if rounds == 1 and all(step.groups for step in steps):
        begun = [step.groups[0].members[0].rollout.versions for step in steps]
        assert begun == [(max(0, s - 1 - lag),) * 2 for s in range(1, len(steps) + 1)]
