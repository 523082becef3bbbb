"""INFER, ESTIMATE, SPLIT: from a step's scored groups to the optimizer steps of each role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from openrlhf_ext.batch.split import train_steps
from openrlhf_ext.batch.types import Experience, OptimizerStep, Signals, TokenBatch
from openrlhf_ext.ops.advantage import advantages
from openrlhf_ext.ops.kl import approximate_kl
from openrlhf_ext.ops.length_penalty import penalised
from openrlhf_ext.trainers.settings import RLRoles, RLSettings
from openrlhf_ext.types import RolloutGroup, derive_seed

CRITIC_COLUMNS = {"values", "returns"}
"""What the critic's objective reads; the policy's reads the others."""


class Updates(NamedTuple):
    """The optimizer steps of a rollout step, over the same rows for both; () for a role that does not learn in it."""

    policy: Sequence[OptimizerStep] = ()
    critic: Sequence[OptimizerStep] = ()


def infer(batch: TokenBatch, settings: RLSettings, roles: RLRoles) -> Signals:
    """Ask the models what the update needs to know, and nothing else.

    The policy's own log-probs before the update are needed if the policy moves away from them (several optimizer
    steps) or the KL is in the reward. Otherwise the update's own forward gives them for nothing, whatever policy
    the rollouts were sampled from: how far that one is away is known from the sampler's log-probs.
    """
    needs_old = settings.optimizer_steps(batch.rows) > 1 or settings.kl_in_reward
    temperature = settings.sampling.temperature
    return Signals(
        old_logp_BA=roles.policy.logprobs(batch, temperature) if needs_old else None,
        ref_logp_BA=roles.reference.logprobs(batch, temperature) if roles.reference else None,
        values_BA=roles.critic.values(batch) if roles.critic else None,
    )


def estimate(groups: Sequence[RolloutGroup], batch: TokenBatch, signals: Signals, settings: RLSettings) -> Experience:
    """Scores and signals to advantages, with the columns that the objectives read.

    A length penalty is of the answer as a whole: it moves what the turns leave of the score, and no turn.
    """
    scores_B = penalised_scores(groups, settings)
    group_B = torch.tensor([index for index, group in enumerate(groups) for _ in group.members])
    advantages_BA, returns_BA = advantages(
        scores_B,
        group_B,
        batch.action_BA,
        reward_kl(signals, settings),
        settings.advantage,
        signals.values_BA,
        turns_BA=turn_rewards(groups, batch),
        role_B=role_numbers(groups),
    )
    columns = {"advantages": advantages_BA, "returns": returns_BA, "sampler_logp": batch.sampler_logp_BA}
    if signals.old_logp_BA is not None:
        columns["old_logp"] = signals.old_logp_BA
    if signals.ref_logp_BA is not None and not settings.kl_in_reward:
        columns["ref_logp"] = signals.ref_logp_BA
    if signals.values_BA is not None:
        columns["values"] = signals.values_BA
    return Experience(batch, columns)


def penalised_scores(groups: Sequence[RolloutGroup], settings: RLSettings) -> Tensor:
    """(B,) the rewards, less what the answers' lengths cost."""
    members = [member for group in groups for member in group.members]
    scores_B = torch.tensor([member.score.value for member in members], dtype=torch.float32)
    if settings.length_penalties is None:
        return scores_B
    lengths_B = torch.tensor([member.rollout.response_length for member in members])
    truncated_B = torch.tensor([member.rollout.finish_reason == "length" for member in members])
    return penalised(scores_B, lengths_B, truncated_B, settings.length_penalties)


def turn_rewards(groups: Sequence[RolloutGroup], batch: TokenBatch) -> Tensor | None:
    """(B, A) the parts of the scores that fell at a turn; None where the scores know of no turns."""
    turns = [member.score.turns for group in groups for member in group.members]
    if not any(turns):
        return None
    turns_BA = torch.zeros_like(batch.sampler_logp_BA)
    for row, fell in enumerate(turns):
        for position, reward in fell:
            turns_BA[row, position - 1] += reward  # column a speaks of token a + 1
    return turns_BA


def role_numbers(groups: Sequence[RolloutGroup]) -> Tensor | None:
    """(B,) a number for each role; None where there is one."""
    roles = [member.rollout.role for group in groups for member in group.members]
    numbers = {role: number for number, role in enumerate(sorted(set(roles)))}
    return torch.tensor([numbers[role] for role in roles]) if len(numbers) > 1 else None


def reward_kl(signals: Signals, settings: RLSettings) -> Tensor | None:
    """(B, A) the KL that the reward is charged for; None where it is not."""
    if not settings.kl_in_reward:
        return None
    assert signals.old_logp_BA is not None and signals.ref_logp_BA is not None, "a KL needs policy and reference"
    return approximate_kl(signals.old_logp_BA, signals.ref_logp_BA, settings.kl_estimator)


def split(experience: Experience, settings: RLSettings, roles: RLRoles, step: int) -> Updates:
    """The optimizer steps of this rollout step; their order is drawn from (run seed, step)."""
    columns = experience.columns
    of_critic = {name: column for name, column in columns.items() if name in CRITIC_COLUMNS}
    of_policy = {name: column for name, column in columns.items() if name not in CRITIC_COLUMNS}

    def steps(columns: dict[str, Tensor], ranks: int) -> list[OptimizerStep]:
        by_rank = replace(settings.split, ranks=ranks)
        seed = derive_seed(settings.seed, "split", step)
        part = Experience(experience.batch, columns)
        return train_steps(part, by_rank, batch_size=settings.batch_size, epochs=settings.epochs, seed=seed)

    return Updates(
        policy=steps(of_policy, roles.policy.ranks) if step > settings.freezing_steps else (),
        critic=steps(of_critic, roles.critic.ranks) if roles.critic else (),
    )
