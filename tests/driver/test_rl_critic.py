"""PPO's parts of the driver: the critic, its head start, the adaptive KL, what an answer's length costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import PAD, BigramCritic, BigramGenerator, BigramPolicy, CountingReward
from rl_job import SETTINGS, Job

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.ops.kl import adapted_kl_coef
from openrlhf_ext.ops.length_penalty import LengthPenalties
from openrlhf_ext.trainers.experience import estimate, infer, split
from openrlhf_ext.trainers.journal import Cadence
from openrlhf_ext.trainers.objectives import PolicyObjective, ValueObjective
from openrlhf_ext.trainers.settings import RLRoles

PPO = replace(SETTINGS, advantage=AdvantageSettings(estimator="gae", lambd=0.9), value_objective=ValueObjective())


def test_a_step_with_a_critic_calls_its_ports_in_order(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=4, episodes=1, settings=replace(PPO, batch_size=8))
    assert job.run() == 1
    assert job.calls == [
        "publish 0",
        "generate 4x4",
        "score",
        "policy.logprobs",
        "critic.values",
        "critic.update 2",
        "update 2",
        "publish 1",
        "save",
        "critic.save",
    ]


def test_each_role_is_sent_what_its_objective_reads_over_the_same_rows(tmp_path: Path) -> None:
    job = Job(tmp_path, prompts=4, episodes=1, settings=replace(PPO, batch_size=6, epochs=2))
    job.run()
    assert job.critic is not None
    ((policy,), (critic,)) = job.policy.updates, job.critic.updates
    assert len(policy) == len(critic) == 6
    for ours, theirs in zip(policy, critic, strict=True):
        rows = [[micro.rows for micro in step[0].micro_batches] for step in (ours, theirs)]
        assert rows[0] == rows[1]
        assert set(ours[0].micro_batches[0].columns) == {"advantages", "sampler_logp", "old_logp"}
        assert set(theirs[0].micro_batches[0].columns) == {"values", "returns"}
    orders = [[micro.rows for micro in step[0].micro_batches] for step in policy]
    assert orders[:3] != orders[3:]


def test_a_critic_on_other_ranks_gets_the_same_optimizer_steps(tmp_path: Path) -> None:
    class TwoRanks(BigramCritic):
        @property
        def ranks(self) -> int:
            return 2

    job = Job(tmp_path, prompts=4, episodes=1, settings=replace(PPO, batch_size=6))
    job.run()
    (groups,) = (step.groups for step in job.recorded())
    batch = token_batch([member.rollout for group in groups for member in group.members], PAD)
    generator = BigramGenerator([])
    roles = RLRoles(generator, CountingReward([]), BigramPolicy(generator, []), critic=TwoRanks([]))
    experience = estimate(groups, batch, infer(batch, job.settings, roles), job.settings)
    updates = split(experience, job.settings, roles, step=1)
    for of_policy, of_critic in zip(updates.policy, updates.critic, strict=True):
        assert (len(of_policy), len(of_critic)) == (1, 2)
        rows = [
            sorted(r for shard in step for m in shard.micro_batches for r in m.rows) for step in (of_policy, of_critic)
        ]
        assert rows[0] == rows[1]
        assert of_policy[0].denominators == of_critic[0].denominators == of_critic[1].denominators


def test_the_critics_values_are_what_returns_are_made_of(tmp_path: Path) -> None:
    """With lambda 0 the return of an action is the value expected after it, of the last one the reward."""
    advantage = AdvantageSettings(estimator="gae", lambd=0.0, norm="none")
    job = Job(tmp_path, prompts=4, episodes=1, settings=replace(PPO, advantage=advantage))
    job.run()
    assert job.critic is not None
    rewards = [member.score.value for group in job.recorded()[0].groups for member in group.members]
    checked = 0
    for of_critic, of_policy in zip(
        job.critic.updates[0][0][0].micro_batches, job.policy.updates[0][0][0].micro_batches, strict=True
    ):
        for b, row in enumerate(of_critic.rows):
            actions = of_critic.action_BA[b]
            values, returns = (of_critic.columns[name][b][actions].tolist() for name in ("values", "returns"))
            assert returns == pytest.approx([*values[1:], rewards[row]], abs=1e-6)
            gained = [after - before for after, before in zip(returns, values, strict=True)]
            assert of_policy.columns["advantages"][b][actions].tolist() == pytest.approx(gained, abs=1e-6)
            checked += len(values) > 1 and all(values)
    assert checked > 8


def test_ppo_learns_and_its_critic_explains_the_returns(tmp_path: Path) -> None:
    job = Job(tmp_path, episodes=10, prompts=16, evaluates=True, settings=PPO, lr=2.0)
    job.run()
    before, after = job.metric("eval/held_out/reward")
    assert before < 0.4
    assert after > 0.7
    losses, explained = job.metric("critic/loss"), job.metric("critic/explained_variance")
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert explained[0] < 0.1
    # With the policy at rest the critic has one target: what is left is what no value of a single token can tell.
    still = Job(tmp_path / "still", episodes=10, prompts=16, settings=PPO, lr=0.0)
    still.run()
    assert sum(still.metric("critic/explained_variance")[-10:]) / 10 > 0.02
    assert still.critic is not None
    returns, values = still.metric("return"), still.metric("critic/value")
    assert sum(values[-10:]) == pytest.approx(sum(returns[-10:]), rel=0.1)


def test_in_the_critics_head_start_the_policy_rests_and_nothing_is_published(tmp_path: Path) -> None:
    job = Job(tmp_path, settings=replace(PPO, freezing_steps=2), cadence=Cadence(save=1))  # 4 steps
    before = BigramPolicy(BigramGenerator([]), []).engine.table.clone()
    tables: list[torch.Tensor] = []
    job.during_update = lambda: tables.append(job.policy.engine.table.detach().clone())
    assert job.run() == 4
    assert bool((tables[0] == before).all())
    assert len(tables) == 2
    assert [call for call in job.calls if call.startswith("publish")] == ["publish 0", "publish 1", "publish 2"]
    assert job.calls.count("critic.update 1") == 4
    assert job.metric("policy/optimizer_steps") == [0.0, 0.0, 1.0, 1.0]
    assert job.metric("rollout/staleness_max") == [0.0] * 4
    assert [step.groups[0].members[0].rollout.versions for step in job.recorded()] == [(0, 0)] * 3 + [(1, 1)]
    assert "policy/loss" not in job.trace[1][1]
    assert len(job.metric("critic/loss")) == 4


@pytest.mark.parametrize("in_loss", [False, True])
def test_the_kl_coefficient_follows_the_measured_kl(tmp_path: Path, in_loss: bool) -> None:
    place: dict = (
        {"objective": PolicyObjective(kl_coef=0.1, kl_estimator="k3")}
        if in_loss
        else {"advantage": replace(SETTINGS.advantage, kl_coef=0.1), "kl_estimator": "k2"}
    )
    settings = replace(SETTINGS, **place, kl_target=0.05, kl_horizon=64)
    job = Job(tmp_path, settings=settings, reference=True, episodes=6, lr=3.0)
    job.run()
    used, measured = job.metric("policy/kl_coef"), job.metric("policy/kl")
    assert used[0] == 0.1
    for now, kl, after in zip(used, measured, used[1:], strict=False):
        assert after == pytest.approx(adapted_kl_coef(now, kl, target=0.05, horizon=64, samples=16))
    assert len(set(used)) == len(used)
    end = job.store.latest()
    assert end is not None
    assert end.state["kl_coef"] == pytest.approx(
        adapted_kl_coef(used[-1], measured[-1], target=0.05, horizon=64, samples=16)
    )


def test_a_kl_without_a_target_keeps_its_coefficient(tmp_path: Path) -> None:
    settings = replace(SETTINGS, advantage=replace(SETTINGS.advantage, kl_coef=0.1))
    job = Job(tmp_path, settings=settings, reference=True)
    job.run()
    assert job.metric("policy/kl_coef") == [0.1] * 4


def test_an_adapted_coefficient_moves_the_policy(tmp_path: Path) -> None:
    def distance(target: float) -> float:
        objective = PolicyObjective(kl_coef=0.1, kl_estimator="k2")
        settings = replace(SETTINGS, objective=objective, kl_target=target, kl_horizon=16)
        job = Job(tmp_path / str(target), settings=settings, reference=True, episodes=10)
        job.run()
        return job.metric("policy/kl")[-1]

    assert distance(0.002) < 0.5 * distance(10.0)


def test_lengths_cost_score_and_the_reward_stays_the_reward_functions_own(tmp_path: Path) -> None:
    penalties = LengthPenalties(max_new_tokens=6, overlong_buffer=3, overlong_factor=0.9, stop_properly=-0.5)
    advantage = AdvantageSettings(estimator="reinforce", norm="none", std_norm=True)
    plain = Job(tmp_path / "plain", settings=replace(SETTINGS, advantage=advantage), episodes=1, prompts=4)
    priced = Job(
        tmp_path / "priced", settings=replace(plain.settings, length_penalties=penalties), episodes=1, prompts=4
    )
    plain.run()
    priced.run()
    assert plain.metric("reward") == priced.metric("reward")
    assert plain.metric("reward/penalised") == []
    members = [member for group in priced.recorded()[0].groups for member in group.members]

    def price(length: int, truncated: bool, score: float) -> float:
        return -0.5 if truncated else score - 0.9 * min(max(length - 3, 0) / 3, 1.0)

    due = [price(m.rollout.response_length, m.rollout.finish_reason == "length", m.score.value) for m in members]
    assert priced.metric("reward/penalised") == pytest.approx([sum(due) / len(due)])
    assert len({price == m.score.value for price, m in zip(due, members, strict=True)}) == 2
    columns = [micro.columns["advantages"] for micro in priced.policy.updates[0][0][0].micro_batches]
    lengths = [m.rollout.response_length for m in members]
    expected = sum(score * length for score, length in zip(due, lengths, strict=True))
    assert sum(float(column.sum()) for column in columns) == pytest.approx(expected, rel=1e-5)
    tokens = sum(lengths)
    for name in ("advantage", "return"):
        assert priced.metric(name) == pytest.approx([expected / tokens])


def test_every_step_reports_what_a_critic_has_to_say(tmp_path: Path) -> None:
    job = Job(tmp_path, settings=PPO)
    job.run()
    expected = {"loss", "value", "explained_variance", "grad_norm", "lr", "clip_fraction"}
    for _, values in job.tracker.lines:
        assert {f"critic/{name}" for name in expected} <= values.keys()
        assert not {"critic/return_square", "critic/error_square"} & values.keys()
        assert values["critic/return"] == pytest.approx(values["return"], rel=1e-5)
        assert values["advantage"] == pytest.approx(0.0, abs=1e-6)  # gae normalises
        assert values["advantage/std"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"advantage": AdvantageSettings(estimator="gae")}, "needs a critic"),
        ({"freezing_steps": 1}, "nobody would learn"),
        ({"kl_target": 0.1}, "stays 0"),
        ({"partial": True}, "without lag"),
    ],
)
def test_settings_that_contradict_each_other_are_a_mistake(change: dict, because: str) -> None:
    with pytest.raises(AssertionError, match=because):
        replace(SETTINGS, **change)
