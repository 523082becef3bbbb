"""The RL driver: GENERATE -> SCORE -> INFER -> ESTIMATE -> SPLIT -> UPDATE -> PUBLISH -> evaluate, log, save.

It speaks to ports only (`openrlhf_ext.ports`): what runs where, who sleeps and who wakes is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import train_steps
from openrlhf_ext.batch.types import Experience, OptimizerStep, Signals, TokenBatch
from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.ops.advantage import AdvantageSettings, advantages
from openrlhf_ext.ops.kl import approximate_kl
from openrlhf_ext.ports import Generator, LogprobRole, PolicyRole, RewardFn
from openrlhf_ext.track.checkpoints import Checkpoint
from openrlhf_ext.track.rollouts import write_rollouts
from openrlhf_ext.trainers.journal import Journal
from openrlhf_ext.trainers.objectives import PolicyObjective
from openrlhf_ext.trainers.reports import rollout_report, token_mean, under
from openrlhf_ext.trainers.rollouts import RolloutSource
from openrlhf_ext.types import Metric, Report, RolloutGroup, Sampling, derive_seed, merge_reports


@dataclass(frozen=True, slots=True)
class RLSettings:
    """What the driver decides by. `advantage.kl_coef` weighs a KL in the reward; one in the loss is the objective's."""

    seed: int
    pad_id: int
    sampling: Sampling  # its seed is replaced at every step
    split: SplitSettings  # of training micro-batches; its ranks are the policy's
    batch_size: int  # rollouts of one optimizer step
    objective: PolicyObjective = field(default_factory=PolicyObjective)
    epochs: int = 1  # passes over each step's rollouts
    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    kl_estimator: str = "k1"

    @property
    def kl_in_reward(self) -> bool:
        return self.advantage.kl_coef > 0.0

    def optimizer_steps(self, rollouts: int) -> int:
        """Optimizer steps that so many rollouts give."""
        return math.ceil(rollouts / self.batch_size) * self.epochs


@dataclass(frozen=True, slots=True)
class RLRoles:
    """Who does the work. The reference is there where a KL is asked for, in the reward or in the loss."""

    generator: Generator
    reward: RewardFn
    policy: PolicyRole
    reference: LogprobRole | None = None


def train_rl(
    settings: RLSettings,
    prompts: PromptSource,
    roles: RLRoles,
    journal: Journal,
    *,
    rollout_folder: Path | None = None,
    resume: Checkpoint | None = None,
) -> int:
    """Train until the prompts are used up; returns the last step. A step is a rollout step.

    A step all of whose groups failed to be scored updates nothing, and says so.
    Raises what the roles raise, and DataError where `resume` does not fit.
    """
    policy, clock = roles.policy, journal.clock
    step, version = (0, 0) if resume is None else restore(resume, prompts, policy)
    with clock("publish"):
        policy.publish(version)
    journal.begin(step, resume.state if resume else None)
    source = RolloutSource(
        prompts, roles.generator, roles.reward, sampling=settings.sampling, seed=settings.seed, clock=clock
    )
    while (sampled := source.next(step + 1)) is not None:
        step += 1
        if rollout_folder is not None:
            write_rollouts(rollout_folder, step, sampled.epoch, sampled.groups, sampled.failed)
        reports: list[Report] = [rollout_report(sampled, version)]
        updates: list[OptimizerStep] = []
        if sampled.groups:
            batch = token_batch(sampled.rollouts, settings.pad_id)
            with clock("infer"):
                signals = infer(batch, settings, roles)
            with clock("estimate"):
                experience = estimate(sampled.groups, batch, signals, settings)
                updates = split(experience, settings, policy.ranks, step)
            with clock("update"):
                reports.append(under("policy", policy.update(updates, settings.objective)))
            with clock("publish"):
                version = step
                reports.append(under("publish", policy.publish(version)))
            reports.append(signal_report(batch, signals, settings))
        else:
            journal.note(f"step {step}: no group could be scored, so the policy stays as it is")
        reports.append({"policy/optimizer_steps": Metric(len(updates), reduction="sum")})
        journal.end_step(
            step,
            merge_reports(reports),
            tokens=sampled.tokens_by_phase,
            write=lambda folder: policy.save(folder / "policy"),
            state={"prompts": sampled.prompts_state, "version": version},
        )
    return step


def restore(resume: Checkpoint, prompts: PromptSource, policy: PolicyRole) -> tuple[int, int]:
    """Put the policy and the prompts back where the checkpoint has them; returns its step and weight version."""
    prompts.restore(resume.state["prompts"])
    policy.load(resume.path / "policy")
    return resume.step, resume.state["version"]


def infer(batch: TokenBatch, settings: RLSettings, roles: RLRoles) -> Signals:
    """Ask the models what the update needs to know, and nothing else.

    The policy's own log-probs before the update are needed if the policy moves away from them (several
    optimizer steps) or the KL is in the reward. Otherwise the update's own forward gives them for nothing.
    """
    needs_old = settings.optimizer_steps(batch.rows) > 1 or settings.kl_in_reward
    temperature = settings.sampling.temperature
    return Signals(
        old_logp_BA=roles.policy.logprobs(batch, temperature) if needs_old else None,
        ref_logp_BA=roles.reference.logprobs(batch, temperature) if roles.reference else None,
    )


def estimate(groups: Sequence[RolloutGroup], batch: TokenBatch, signals: Signals, settings: RLSettings) -> Experience:
    """Scores and signals to advantages, with the columns that the objective reads."""
    scores_B = torch.tensor([member.score.value for group in groups for member in group.members])
    group_B = torch.tensor([index for index, group in enumerate(groups) for _ in group.members])
    kl_BA = reward_kl(signals, settings)
    advantages_BA, returns_BA = advantages(scores_B, group_B, batch.action_BA, kl_BA, settings.advantage)
    columns = {"advantages": advantages_BA, "returns": returns_BA, "sampler_logp": batch.sampler_logp_BA}
    if signals.old_logp_BA is not None:
        columns["old_logp"] = signals.old_logp_BA
    if signals.ref_logp_BA is not None and not settings.kl_in_reward:
        columns["ref_logp"] = signals.ref_logp_BA
    return Experience(batch, columns)


def reward_kl(signals: Signals, settings: RLSettings) -> Tensor | None:
    """(B, A) the KL that the reward is charged for; None where it is not."""
    if not settings.kl_in_reward:
        return None
    assert signals.old_logp_BA is not None and signals.ref_logp_BA is not None, "a KL needs policy and reference"
    return approximate_kl(signals.old_logp_BA, signals.ref_logp_BA, settings.kl_estimator)


def split(experience: Experience, settings: RLSettings, ranks: int, step: int) -> list[OptimizerStep]:
    """The optimizer steps of this rollout step; their order is drawn from (run seed, step)."""
    seed = derive_seed(settings.seed, "split", step)
    by_rank = replace(settings.split, ranks=ranks)
    return train_steps(experience, by_rank, batch_size=settings.batch_size, epochs=settings.epochs, seed=seed)


def signal_report(batch: TokenBatch, signals: Signals, settings: RLSettings) -> Report:
    """The KL that the reward was charged for, as the mean over actions."""
    kl_BA = reward_kl(signals, settings)
    return {} if kl_BA is None else {"policy/kl": token_mean(kl_BA, batch.action_BA)}
