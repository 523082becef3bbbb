"""The RL loop over in-memory ports: what is called when, what survives a kill, what is counted, what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import PAD, BigramGenerator, BigramPolicy, CountingReward
from rl_job import SETTINGS, Job

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.condition import Condition
from openrlhf_ext.errors import DataError, RewardError
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.track.rollouts import read_rollouts, rollout_path
from openrlhf_ext.trainers.experience import estimate, infer, split
from openrlhf_ext.trainers.journal import Cadence
from openrlhf_ext.trainers.objectives import PolicyObjective
from openrlhf_ext.trainers.settings import RLRoles
from openrlhf_ext.types import ScoreFailure


def test_a_step_calls_its_ports_in_order(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=4, episodes=1, reference=True, settings=replace(SETTINGS, batch_size=8))
    assert job.run() == 1
    assert job.calls == [
        "publish 0",
        "generate 4x4",
        "score",
        "policy.logprobs",
        "reference.logprobs",
        "update 2",
        "publish 1",
        "save",
    ]


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, False),
        ({"epochs": 2}, True),
        ({"batch_size": 15}, True),  # 16 rollouts: a second, short optimizer step
        ({"advantage": AdvantageSettings(kl_coef=0.1)}, True),
    ],
)
def test_old_logprobs_are_computed_only_where_they_are_needed(tmp_path: Path, change: dict, asked: bool) -> None:
    job = Job(tmp_path, settings=replace(SETTINGS, **change), prompts=4, episodes=1, reference="advantage" in change)
    job.run()
    assert ("policy.logprobs" in job.calls) is asked
    columns = job.policy.updates[0][0][0].micro_batches[0].columns
    assert ("old_logp" in columns) is asked
    assert "ref_logp" not in columns


def test_skipping_the_old_logprobs_changes_nothing(tmp_path: Path) -> None:
    skipping = Job(tmp_path / "a", prompts=4, episodes=1)
    skipping.run()
    asking = Job(tmp_path / "b", prompts=4, episodes=1, reference=True)
    asking.settings = replace(SETTINGS, advantage=replace(SETTINGS.advantage, kl_coef=1e-12))
    asking.run()
    difference = (skipping.policy.engine.table - asking.policy.engine.table).detach()
    assert float(difference.abs().max()) < 1e-6


def test_the_reward_rises(tmp_path: Path) -> None:
    job = Job(tmp_path, episodes=8, prompts=16, evaluates=True, lr=4.0)
    job.run()
    rewards = job.metric("reward")
    assert sum(rewards[:3]) / 3 < 0.4
    assert sum(rewards[-3:]) / 3 > 0.7
    before, after = job.metric("eval/held_out/reward")
    assert before < 0.4
    assert after > 0.7


@pytest.mark.parametrize("in_loss", [False, True])
def test_a_kl_penalty_keeps_the_policy_near_the_reference(tmp_path: Path, in_loss: bool) -> None:
    def distance(coef: float) -> float:
        settings = SETTINGS if in_loss else replace(SETTINGS, advantage=replace(SETTINGS.advantage, kl_coef=coef))
        objective = PolicyObjective(kl_coef=coef if in_loss else 0.0, kl_estimator="k2")
        job = Job(tmp_path / str(coef), settings=replace(settings, objective=objective), reference=True, episodes=6)
        job.run()
        return job.metric("policy/kl")[-1]

    assert distance(3.0) < 0.5 * distance(0.01)


def test_the_same_seed_gives_the_same_trace_and_another_seed_another(tmp_path: Path) -> None:
    jobs = [
        Job(tmp_path / name, settings=replace(SETTINGS, seed=seed)) for name, seed in [("a", 7), ("b", 7), ("c", 8)]
    ]
    for job in jobs:
        job.run()
    assert jobs[0].trace == jobs[1].trace
    assert jobs[0].trace != jobs[2].trace


def test_a_prompt_that_comes_again_is_answered_anew(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=4, episodes=2, lr=0.0)
    job.run()
    first, second = (read_rollouts(rollout_path(tmp_path / "rollouts", step)) for step in (1, 2))
    answers = [{m.rollout.key: m.rollout.text for group in groups for m in group.members} for groups in (first, second)]
    assert answers[0].keys() == answers[1].keys()
    assert answers[0] != answers[1]


@pytest.mark.parametrize("killed_in_step", [3, 5, 8])
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path: Path, killed_in_step: int) -> None:
    shape = {
        "episodes": 4,
        "prompts": 8,
        "cadence": Cadence(save=2, evaluate=3, best="pass@1"),
        "evaluates": True,
        "settings": replace(SETTINGS, epochs=2, batch_size=6),
        "failing": {"default-3": ScoreFailure("timeout", "too slow")},
    }
    whole = Job(tmp_path / "whole", **shape)
    assert whole.run() == 8

    class Killed(BaseException):
        pass

    started = 0

    def kill() -> None:
        nonlocal started
        started += 1
        if started == killed_in_step:
            raise Killed

    broken = Job(tmp_path / "broken", **shape, during_update=kill)
    with pytest.raises(Killed):
        broken.run()
    checkpoint = broken.store.latest()
    assert checkpoint is not None
    resumed = replace(broken, during_update=lambda: None)
    assert resumed.run(resume=True) == 8
    assert resumed.calls[:2] == ["load", f"publish {checkpoint.step}"]
    assert resumed.trace == [line for line in whole.trace if line[0] > checkpoint.step]
    ends = [job.store.latest() for job in (whole, resumed)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert (ends[0].step, ends[0].metric, ends[0].state) == (ends[1].step, ends[1].metric, ends[1].state)
    assert resumed.calls.count("save") == sum(step > checkpoint.step for step in whole.saved_steps)
    for step in range(1, 9):
        ours = rollout_path(resumed.folder / "rollouts", step)
        assert read_rollouts(ours) == read_rollouts(rollout_path(whole.folder / "rollouts", step))


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_that_is_asked_to_stop_saves_that_step_and_goes_on_from_it(tmp_path: Path, lag: int) -> None:
    settings = replace(SETTINGS, max_lag=lag)
    whole = Job(tmp_path / "whole", settings=settings)
    assert whole.run() == 4
    asked = iter([False, True])
    job = Job(tmp_path / "job", settings=settings, stop=lambda: next(asked))
    assert job.run() == 2
    assert [found.step for found in job.store.checkpoints()] == [2]
    resumed = replace(job, stop=lambda: False)
    assert resumed.run(resume=True) == 4
    assert resumed.policy.engine.table.equal(whole.policy.engine.table)


def test_a_resume_with_other_prompts_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    with pytest.raises(DataError, match="not those that the checkpoint"):
        replace(job, prompts=9).run(resume=True)


def test_a_group_that_cannot_be_scored_is_dropped_and_counted(tmp_path: Path) -> None:
    failure = ScoreFailure("exception", "KeyError: 'answer'")
    job = Job(tmp_path, prompts=4, episodes=1, failing={"default-1": failure})
    job.run()
    assert job.metric("rollout/failed_groups") == [1.0]
    assert job.metric("rollout/failed/exception") == [1.0]
    assert job.metric("rollout/prompts") == [4.0]
    assert job.metric("rollout/samples") == [12.0]
    trained = {row for micro in job.policy.updates[0][0][0].micro_batches for row in micro.rows}
    assert len(trained) == 12
    kept = read_rollouts(rollout_path(tmp_path / "rollouts", 1))
    assert {group.prompt.id for group in kept} == {"default-0", "default-2", "default-3"}


def test_a_step_without_any_scored_group_updates_nothing_and_says_so(tmp_path: Path) -> None:
    failing = {f"default-{i}": ScoreFailure("timeout", "down") for i in range(8)}
    job = Job(tmp_path, episodes=1, failing=failing)
    before = BigramPolicy(BigramGenerator([]), []).engine.table.clone()
    assert job.run() == 2
    assert job.calls == ["publish 0", "generate 4x4", "score", "generate 4x4", "score", "save"]
    assert bool((job.policy.engine.table == before).all())
    assert job.metric("policy/optimizer_steps") == [0.0, 0.0]
    assert job.metric("rollout/failed_groups") == [4.0, 4.0]
    assert job.metric("reward") == []
    assert len(job.line.notes) == 2
    assert "step 1: no group is left" in job.line.notes[0]


def test_an_error_of_the_reward_ends_the_run_and_leaves_the_checkpoints(tmp_path: Path) -> None:
    class Strict(CountingReward):
        def score(self, groups: Sequence) -> list:
            if self._calls.count("score") == 2:
                raise RewardError("reward.py: reward_func raised KeyError three times")
            return super().score(groups)

    job = Job(tmp_path, cadence=Cadence(save=1), reward=Strict)
    with pytest.raises(RewardError, match="KeyError"):
        job.run()
    assert [found.step for found in job.store.checkpoints()] == [1, 2]


def test_the_last_short_batch_is_a_step_of_its_own(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=10, prompt_batch=4, episodes=2)
    assert job.run() == 6
    assert [call for call in job.calls if call.startswith("generate")] == [
        "generate 4x4",
        "generate 4x4",
        "generate 2x4",
    ] * 2
    assert job.metric("rollout/prompts") == [4.0, 4.0, 2.0] * 2


def test_checkpoints_come_every_save_steps_and_at_the_end(tmp_path: Path) -> None:
    job = Job(tmp_path, episodes=5, cadence=Cadence(save=4))  # 10 steps
    job.run()
    assert [found.step for found in job.store.checkpoints()] == [4, 8, 10]
    only_last = Job(tmp_path / "last", episodes=2, cadence=Cadence(save=0))
    only_last.run()
    assert [found.step for found in only_last.store.checkpoints()] == [4]


def test_evaluation_comes_before_the_first_step_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    job = Job(tmp_path, episodes=5, prompts=8, cadence=Cadence(evaluate=4), evaluates=True)  # 10 steps
    job.run()
    evaluated = [step for step, values in job.tracker.lines if "eval/held_out/pass@1" in values]
    assert evaluated == [0, 4, 8, 10]
    notes = [note for note in job.line.notes if note.startswith("evaluation after step")]
    assert len(notes) == 4
    assert "held_out/pass@1" in notes[0]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_run_ends_with_the_evaluation_that_reaches_its_goal(tmp_path: Path, lag: int) -> None:
    job = Job(
        tmp_path,
        settings=replace(SETTINGS, max_lag=lag),
        episodes=16,
        cadence=Cadence(evaluate=2),
        evaluates=True,
        lr=4.0,
        until=Condition("eval_reward", ">=", 0.5),
    )
    steps = job.run()
    assert 0 < steps < 32
    assert steps % 2 == 0
    rewards = job.metric("eval/held_out/reward")
    assert max(rewards[:-1]) < 0.5 <= rewards[-1]
    assert [found.step for found in job.store.checkpoints()] == [steps]
    assert job.run(resume=True) == steps
    assert not [call for call in job.calls if call.startswith("update")]


def test_the_best_evaluation_is_saved_when_it_happens_and_kept(tmp_path: Path) -> None:
    cadence = Cadence(evaluate=1, save=0, best="pass@1")
    job = Job(tmp_path, episodes=6, cadence=cadence, evaluates=True, lr=3.0)
    job.run()
    curve = job.metric("eval/held_out/pass@1")
    best = job.store.best()
    assert best is not None
    assert best.metric == max(curve)
    assert best.step == curve.index(max(curve))


def test_every_step_reports_what_practitioners_look_at(tmp_path: Path) -> None:
    objective = PolicyObjective(entropy_coef=0.0, kl_coef=0.01, kl_estimator="k3")
    settings = replace(SETTINGS, objective=objective, batch_size=8, epochs=2)
    job = Job(tmp_path, reference=True, settings=settings)
    job.run()
    expected = {
        *("reward", "reward/std", "reward/min", "reward/max", "reward/part/share", "reward/part/length"),
        *("response/length", "response/length_max", "response/truncated", "group/std", "group/zero_std"),
        *("policy/loss", "policy/policy_loss", "policy/kl", "policy/entropy", "policy/clip_fraction", "policy/ratio"),
        *("policy/grad_norm", "policy/lr", "policy/optimizer_steps", "policy/policy_kl"),
        *("mismatch/abs", "mismatch/abs_max", "mismatch/kl", "rollout/staleness", "rollout/prompts"),
        *(f"seconds/{phase}" for phase in ("generate", "score", "infer", "estimate", "update", "publish", "step")),
        *(f"tokens_per_second/{phase}" for phase in ("generate", "infer", "update")),
    }
    for _, values in job.tracker.lines:
        assert expected <= values.keys()
        assert values["mismatch/abs_max"] < 1e-5  # sampler and trainer are the same table
        assert values["rollout/staleness"] == 0.0
        assert values["policy/optimizer_steps"] == 4.0
        assert values["reward"] == pytest.approx(values["reward/part/share"])


def test_logging_every_n_steps_loses_no_step(tmp_path: Path) -> None:
    every = Job(tmp_path / "every", episodes=4)  # 8 steps
    every.run()
    third = Job(tmp_path / "third", episodes=4, cadence=Cadence(log=3))
    third.run()
    assert [step for step, _ in third.tracker.lines] == [3, 6, 8]
    assert sum(third.metric("rollout/prompts")) == sum(every.metric("rollout/prompts"))
    assert third.metric("reward")[0] == pytest.approx(sum(every.metric("reward")[:3]) / 3)


def test_recorded_rollouts_train_as_the_fresh_ones_did(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=4, episodes=1, settings=replace(SETTINGS, batch_size=8, epochs=2))
    job.run()
    policy = BigramPolicy(BigramGenerator([]), [])
    groups = read_rollouts(rollout_path(tmp_path / "rollouts", 1))
    batch = token_batch([member.rollout for group in groups for member in group.members], PAD)
    roles = RLRoles(BigramGenerator([]), CountingReward([]), policy)
    experience = estimate(groups, batch, infer(batch, job.settings, roles), job.settings)
    policy.update(split(experience, job.settings, roles, step=1).policy, job.settings.objective)
    assert bool((policy.engine.table == job.policy.engine.table).all())
