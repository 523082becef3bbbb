"""Answers of several turns and games of two players: where rewards fall, what is compared with what, what survives."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import PAD, BigramCritic, BigramGenerator, BigramPolicy, CountingReward
from games import ROLES, GameGenerator, GameReward, silent
from rl_job import SETTINGS, Job

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.types import Experience
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.ops.length_penalty import LengthPenalties
from openrlhf_ext.track.rollouts import read_step, rollout_path
from openrlhf_ext.trainers.experience import estimate, infer
from openrlhf_ext.trainers.journal import Cadence
from openrlhf_ext.trainers.objectives import ValueObjective
from openrlhf_ext.trainers.settings import RLRoles, RLSettings
from openrlhf_ext.types import Prompt, Rollout, RolloutGroup, Sampling, ScoredRollout

REINFORCE = replace(SETTINGS, advantage=AdvantageSettings("reinforce", norm="none"))


def game(folder: Path, settings: RLSettings = SETTINGS, **changes) -> Job:
    return Job(folder, settings=settings, generator=GameGenerator, reward=GameReward, **changes)


def played(folder: Path, settings: RLSettings) -> tuple[Sequence[RolloutGroup], Experience]:
    """One step of the game, and what is learned from it."""
    job = game(folder, settings, prompts=4, episodes=1)
    job.run()
    groups = job.recorded()[0].groups
    batch = token_batch([member.rollout for group in groups for member in group.members], PAD)
    generator = BigramGenerator([])
    critic = BigramCritic([]) if settings.value_objective else None
    roles = RLRoles(generator, CountingReward([]), BigramPolicy(generator, []), critic=critic)
    return groups, estimate(groups, batch, infer(batch, settings, roles), settings)


def members_of(groups: Sequence[RolloutGroup]) -> list[ScoredRollout]:
    return [member for group in groups for member in group.members]


def on_actions(experience: Experience, column: str, row: int) -> list[float]:
    return experience.columns[column][row][experience.batch.action_BA[row]].tolist()


def test_every_role_that_spoke_is_trained_on(tmp_path: Path) -> None:
    job = game(tmp_path, prompts=4, episodes=1)
    assert job.run() == 1
    groups = job.recorded()[0].groups
    spoken = {
        (group.prompt.id, 2 * episode + role)
        for group in groups
        for episode in range(4)
        for role in ((0,) if silent(group.prompt, episode) else (0, 1))
    }
    assert {tuple(member.rollout.key) for member in members_of(groups)} == spoken
    assert 16 < len(spoken) < 32
    rows = [row for micro in job.policy.updates[0][0][0].micro_batches for row in micro.rows]
    assert sorted(rows) == list(range(len(spoken)))
    assert job.metric("rollout/samples") == [float(len(spoken))]


def test_a_turns_reward_falls_on_its_last_token_and_the_rest_on_the_last_action(tmp_path: Path) -> None:
    groups, experience = played(tmp_path, REINFORCE)
    several = 0
    for row, member in enumerate(members_of(groups)):
        actions = member.rollout.action_mask.nonzero()[0].tolist()
        fell = dict(member.score.turns)
        assert set(fell) <= set(actions)
        rewards = [fell.get(t, 0.0) for t in actions]
        rewards[-1] += member.score.value - sum(fell.values())
        expected = [sum(rewards[i:]) for i in range(len(rewards))]
        got = on_actions(experience, "advantages", row)
        assert got == pytest.approx(expected, abs=1e-5)
        assert got[0] == pytest.approx(member.score.value, abs=1e-5)
        several += len({round(value, 4) for value in got}) > 1
    assert several > 4


def test_with_a_critic_too(tmp_path: Path) -> None:
    """With lambda 0 an action's return is its reward and the value expected after it."""
    advantage = AdvantageSettings("gae", lambd=0.0, norm="none")
    groups, experience = played(tmp_path, replace(SETTINGS, advantage=advantage, value_objective=ValueObjective()))
    for row, member in enumerate(members_of(groups)):
        actions = member.rollout.action_mask.nonzero()[0].tolist()
        fell = dict(member.score.turns)
        values = on_actions(experience, "values", row)
        rest = member.score.value - sum(fell.values())
        rewards = [fell.get(t, 0.0) + rest * (t == actions[-1]) for t in actions]
        expected = [reward + value for reward, value in zip(rewards, [*values[1:], 0.0], strict=True)]
        assert on_actions(experience, "returns", row) == pytest.approx(expected, abs=1e-5)


def test_a_length_penalty_moves_no_turn(tmp_path: Path) -> None:
    penalty = LengthPenalties(max_new_tokens=6, stop_properly=-3.0)
    groups, plain = played(tmp_path / "plain", REINFORCE)
    _, charged = played(tmp_path / "charged", replace(REINFORCE, length_penalties=penalty))
    cut = 0
    for row, member in enumerate(members_of(groups)):
        before, after = (on_actions(each, "advantages", row) for each in (plain, charged))
        if member.rollout.finish_reason != "length":
            assert after == before
            continue
        cut += 1
        moved = -3.0 - member.score.value
        assert after == pytest.approx([value + moved for value in before], abs=1e-4)
    assert cut


@pytest.mark.parametrize("estimator", ["reinforce_baseline", "rloo", "group_norm", "dr_grpo", "flash_reinforce"])
def test_group_estimators_see_the_sum_of_a_role_s_siblings(tmp_path: Path, estimator: str) -> None:
    settings = replace(SETTINGS, advantage=AdvantageSettings(estimator, norm="none"))
    groups, experience = played(tmp_path, settings)
    members = members_of(groups)
    for row, member in enumerate(members):
        got = on_actions(experience, "advantages", row)
        assert len(set(got)) == 1
        if estimator not in ("dr_grpo", "reinforce_baseline", "flash_reinforce"):
            continue
        near = [
            other.score.value
            for other in members
            if other.rollout.role == member.rollout.role
            and (estimator == "flash_reinforce" or other.rollout.prompt_id == member.rollout.prompt_id)
        ]
        expected = member.score.value - statistics.mean(near)
        assert got[0] == pytest.approx(min(max(expected, -10.0), 10.0), abs=1e-4)


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_baseline"])
def test_a_batch_is_normalised_role_by_role(tmp_path: Path, estimator: str) -> None:
    groups, experience = played(tmp_path, replace(SETTINGS, advantage=AdvantageSettings(estimator)))
    by_role: dict[str, list[float]] = {}
    for row, member in enumerate(members_of(groups)):
        by_role.setdefault(member.rollout.role, []).extend(on_actions(experience, "advantages", row))
    assert set(by_role) == set(ROLES)
    for values in by_role.values():
        assert statistics.mean(values) == pytest.approx(0.0, abs=1e-5)
        assert statistics.pstdev(values) == pytest.approx(1.0, abs=1e-4)


def test_a_single_role_changes_no_bit(tmp_path: Path) -> None:
    class Named(BigramGenerator):
        def _sample(self, prompt: Prompt, sample: int, sampling: Sampling) -> Rollout:
            return replace(super()._sample(prompt, sample, sampling), role="only")

    settings = replace(SETTINGS, advantage=AdvantageSettings("reinforce"), batch_size=6)
    traces = []
    for generator in (BigramGenerator, Named):
        job = Job(tmp_path / generator.__name__, settings=settings, generator=generator)
        job.run()
        traces.append((job.trace, job.policy.engine.table.tolist()))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("killed_in_step", [2, 3, 6])
def test_a_killed_game_goes_on_with_the_rollouts_that_were_ready(tmp_path: Path, killed_in_step: int) -> None:
    shape = {
        "prompts": 16,
        "round_size": 8,  # a round feeds two steps: the second's rollouts are ready when the first is saved
        "cadence": Cadence(save=1),
        "settings": replace(SETTINGS, advantage=AdvantageSettings("reinforce"), batch_size=6),
    }
    whole = game(tmp_path / "whole", **shape)
    assert whole.run() == 8

    class Killed(BaseException):
        pass

    started = 0

    def kill() -> None:
        nonlocal started
        started += 1
        if started == killed_in_step:
            raise Killed

    broken = game(tmp_path / "broken", **shape, during_update=kill)
    with pytest.raises(Killed):
        broken.run()
    checkpoint = broken.store.latest()
    assert checkpoint is not None
    assert checkpoint.state["ready"] == checkpoint.step % 2
    resumed = replace(broken, during_update=lambda: None)
    assert resumed.run(resume=True) == 8
    assert resumed.trace == [line for line in whole.trace if line[0] > checkpoint.step]
    for step in range(1, 9):
        ours, theirs = (read_step(rollout_path(job.folder / "rollouts", step)) for job in (resumed, whole))
        assert ours == theirs
        assert all(member.rollout.outcome for member in members_of(ours.groups) if member.rollout.role == ROLES[0])
        assert any(member.score.turns for member in members_of(ours.groups))


def test_figures_by_role(tmp_path: Path) -> None:
    job = game(tmp_path, prompts=4, episodes=1)
    job.run()
    members = members_of(job.recorded()[0].groups)
    for role in ROLES:
        own = [member for member in members if member.rollout.role == role]
        rewards = [member.score.value for member in own]
        (figures,) = (
            {k: v for k, v in values.items() if k.endswith(f"/role/{role}")} for _, values in job.tracker.lines
        )
        expected = {
            "reward": statistics.mean(rewards),
            "reward/std": statistics.pstdev(rewards),
            "reward/part/share": statistics.mean(member.score.parts["share"] for member in own),
            "reward/part/length": statistics.mean(member.score.parts["length"] for member in own),
            "response/length": statistics.mean(member.rollout.response_length for member in own),
            "response/truncated": statistics.mean(member.rollout.finish_reason == "length" for member in own),
            "rollout/samples": len(own),
        }
        assert figures == pytest.approx({f"{name}/role/{role}": value for name, value in expected.items()})
    spreads = [
        statistics.pstdev([m.score.value for m in group.members if m.rollout.role == role])
        for group in job.recorded()[0].groups
        for role in ROLES
        if any(m.rollout.role == role for m in group.members)
    ]
    assert job.metric("group/std") == pytest.approx([statistics.mean(spreads)])


def test_without_roles_no_figure_names_one(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    assert not [name for _, values in job.tracker.lines for name in values if "/role/" in name]


def test_one_role_within_the_range_keeps_a_group(tmp_path: Path) -> None:
    job = game(tmp_path, prompts=4, episodes=1)
    job.run()
    (group, *_) = job.recorded()[0].groups
    below, within, above = ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0))

    def kept(**marks: tuple[float, float]) -> bool:
        members = {role: [m for m in group.members if m.rollout.role == role][:2] for role in ROLES}
        marked = [
            replace(member, score=replace(member.score, filter_value=mark))
            for role, values in marks.items()
            for member, mark in zip(members[role], values, strict=True)
        ]
        return replace(SETTINGS, filter_range=(0.0, 1.0)).keeps(RolloutGroup(group.prompt, tuple(marked)))

    assert kept(attacker=within, assessor=below)
    assert kept(attacker=above, assessor=within)
    assert not kept(attacker=below, assessor=above)  # whose mean over both would be within
    assert not kept(attacker=below)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_generator_that_loses_or_repeats_a_rollout_is_found_out(tmp_path: Path, lost: int) -> None:
    class Careless(BigramGenerator):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
            answers = super().generate(prompts, sampling)
            answers[0] = answers[0][:-1] if lost else [*answers[0], replace(answers[0][0], sample=9)]
            return answers

    with pytest.raises(AssertionError, match="n rollouts of every prompt"):
        Job(tmp_path, generator=Careless).run()
