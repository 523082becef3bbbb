"""What a step says of itself: rewards, lengths, groups, staleness, distance to the reference and to the sampler."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from openrlhf_ext.batch.types import Experience, Signals
from openrlhf_ext.trainers.experience import penalised_scores, reward_kl
from openrlhf_ext.trainers.rollouts import StepRollouts
from openrlhf_ext.trainers.settings import RLSettings
from openrlhf_ext.types import Metric, Report, RolloutGroup, Score, ScoredRollout, mean_metric


def rollout_report(step: StepRollouts, version: int) -> dict[str, Metric]:
    """Figures of one step's rollouts; `version` is the weight version that is trained.

    Rewards are the reward function's own (before penalties, clipping and KL); `group/*` look at the n samples of one
    prompt (in a game, of one role), whose spread is what a group estimator learns from. Every prompt that was consumed
    is in `rollout/prompts` or in `rollout/filtered_groups`; `rollout/passed` is the share of the scored groups that
    passed the filter.
    """
    failed, filtered = step.recorded.failed, step.recorded.filtered
    scored = len(step.groups) + len(filtered)
    report = {
        "rollout/prompts": Metric(len(step.groups) + len(failed), reduction="sum"),
        "rollout/consumed": Metric(scored + len(failed), reduction="sum"),
        "rollout/failed_groups": Metric(len(failed), reduction="sum"),
        "rollout/filtered_groups": Metric(len(filtered), reduction="sum"),
        **step.costs,
    }
    if scored:
        report["rollout/passed"] = Metric(len(step.groups), scored)
    reasons = Counter(group.failure.reason for group in failed)
    report |= {f"rollout/failed/{reason}": Metric(count, reduction="sum") for reason, count in reasons.items()}
    if not step.groups:
        return report
    rollouts = step.rollouts
    roles = {rollout.role for rollout in rollouts}
    lengths = [float(rollout.response_length) for rollout in rollouts]
    staleness = [float(version - rollout.versions[0]) for rollout in rollouts]
    return report | {
        **_reward_figures(step.groups),
        "response/length": mean_metric(lengths),
        "response/length_max": Metric(max(lengths), reduction="max"),
        "response/truncated": mean_metric([float(rollout.finish_reason == "length") for rollout in rollouts]),
        "rollout/samples": Metric(len(rollouts), reduction="sum"),
        "rollout/staleness": mean_metric(staleness),
        "rollout/staleness_max": Metric(max(staleness), reduction="max"),
        **(_figures_of_roles(step.groups) if len(roles) > 1 else {}),
    }


def _figures_of_roles(groups: Sequence[RolloutGroup]) -> dict[str, Metric]:
    """`NAME/role/ROLE` for every role of a game: its rewards with their parts, its answers and how many there are."""
    by_role: dict[str, list[ScoredRollout]] = {}
    for group in groups:
        for member in group.members:
            by_role.setdefault(member.rollout.role, []).append(member)
    figures: dict[str, Metric] = {}
    for role, members in sorted(by_role.items()):
        rewards = [member.score.value for member in members]
        rollouts = [member.rollout for member in members]
        figures |= {
            f"{name}/role/{role}": metric
            for name, metric in {
                "reward": mean_metric(rewards),
                "reward/std": Metric(_spread(rewards)),
                **_parts([member.score for member in members]),
                "response/length": mean_metric([float(rollout.response_length) for rollout in rollouts]),
                "response/truncated": mean_metric([float(rollout.finish_reason == "length") for rollout in rollouts]),
                "rollout/samples": Metric(len(members), reduction="sum"),
            }.items()
        }
    return figures


def _reward_figures(groups: Sequence[RolloutGroup]) -> dict[str, Metric]:
    scores = [member.score for group in groups for member in group.members]
    rewards = [score.value for score in scores]
    siblings = [scores for group in groups for scores in group.scores_by_role().values()]
    spreads = [_spread([score.value for score in scores]) for scores in siblings]
    return {
        "reward": mean_metric(rewards),
        "reward/std": Metric(_spread(rewards)),
        "reward/min": Metric(min(rewards), reduction="min"),
        "reward/max": Metric(max(rewards), reduction="max"),
        **_parts(scores),
        "group/std": mean_metric(spreads),
        "group/zero_std": mean_metric([float(spread == 0.0) for spread in spreads]),
    }


def _spread(values: Sequence[float]) -> float:
    """The standard deviation of all there are; of equal values exactly 0."""
    return 0.0 if min(values) == max(values) else float(np.std(values))


def _parts(scores: Sequence[Score]) -> dict[str, Metric]:
    """Means over the samples that have the part: one that is NaN is not said of a sample, as another role's is not."""
    parts: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.parts.items():
            if not math.isnan(value):
                parts.setdefault(name, []).append(value)
    return {f"reward/part/{name}": mean_metric(values) for name, values in parts.items()}


def experience_report(
    groups: Sequence[RolloutGroup], experience: Experience, signals: Signals, settings: RLSettings
) -> dict[str, Metric]:
    """What is learned from: penalised rewards, advantages, returns, and the KL that the reward was charged for."""
    action_BA, columns = experience.batch.action_BA, experience.columns
    advantage = token_mean(columns["advantages"], action_BA)
    report = {
        "advantage": advantage,
        "advantage/std": Metric(
            deviation(columns["advantages"], action_BA, advantage) * advantage.weight, advantage.weight
        ),
        "return": token_mean(columns["returns"], action_BA),
    }
    if settings.length_penalties is not None:
        report["reward/penalised"] = mean_metric(penalised_scores(groups, settings).tolist())
    if settings.kl_coef > 0.0:
        report["policy/kl_coef"] = Metric(settings.kl_coef, reduction="last")
    kl_BA = reward_kl(signals, settings)
    if kl_BA is not None:
        report["policy/kl"] = token_mean(kl_BA, action_BA)
    return report


def critic_report(report: Report) -> dict[str, Metric]:
    """The critic's figures under its name; of the squares that explained variance is made of, only that is told."""
    figures = {name: metric for name, metric in report.items() if name not in ("return_square", "error_square")}
    if {"return", "return_square", "error_square"} <= report.keys():
        error, tokens = report["error_square"].value, report["error_square"].weight
        variance = report["return_square"].value - report["return"].value ** 2
        if variance > 1e-8:
            figures["explained_variance"] = Metric((1.0 - error / variance) * tokens, tokens)
    return under("critic", figures)


def token_mean(values_BA: Tensor, action_BA: Tensor) -> Metric:
    """The mean over actions, weighted by their number; the values are 0 elsewhere."""
    return Metric(float(values_BA.sum(dim=1).sum(dtype=torch.float64)), float(action_BA.count_nonzero()))


def deviation(values_BA: Tensor, action_BA: Tensor, mean: Metric) -> float:
    """The standard deviation over actions of values with that mean; 0 where there are none."""
    if not mean.weight:
        return 0.0
    centred_BA = (values_BA - mean.value).where(action_BA, 0.0)
    of_rows_B = torch.linalg.vector_norm(centred_BA, dim=1)
    return float(torch.linalg.vector_norm(of_rows_B, dtype=torch.float64)) / math.sqrt(mean.weight)


def under(role: str, report: Report) -> dict[str, Metric]:
    """A role's figures under its own name (`loss` is `policy/loss`); a name with a slash is complete already."""
    return {name if "/" in name else f"{role}/{name}": metric for name, metric in report.items()}
