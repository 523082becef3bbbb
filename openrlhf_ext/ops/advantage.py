"""From scores to advantages, with a critic (gae) or without.

B sequences, A action positions (see `openrlhf_ext.batch.types`). The same four steps for every
estimator: a baseline from the scores (of the group, of the batch or none), a reward per token (the
KL penalty on every action, the score on the last one), returns to go (with a critic: generalised
generalised advantages), and for some estimators normalisation over all actions of the batch. An estimator says
what it does in these steps.

Answers of several turns: rewards that fell at a turn stay there where the estimator knows a time (`discounted`), and
what they leave of the score is given at the last action; the others see the score alone. A game of several players:
nothing is compared over roles, neither a baseline nor a normalisation, for the roles are paid for different things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Baseline = Callable[[Tensor, Tensor], Tensor]
"""(scores_B, group_B) -> shaped scores_B."""

Norm = Literal["none", "mean", "std"]
"""Over all actions of the batch: nothing, centred, or centred and divided by the standard deviation."""


@dataclass(frozen=True, slots=True)
class Estimator:
    paper: str
    shape: Baseline
    norm: Norm = "none"
    discounted: bool = False  # whether gamma may be other than 1, and a reward be given before the last action
    needs_values: bool = False


@dataclass(frozen=True, slots=True)
class AdvantageSettings:
    estimator: str = "reinforce"  # a name in ESTIMATORS
    gamma: float = 1.0
    kl_coef: float = 0.0  # of the KL penalty in the reward
    reward_clip: tuple[float, float] | None = None  # applied after the baseline
    std_norm: bool = True  # False: an estimator that normalises by itself centres only
    lambd: float = 1.0  # of gae: 1 is unbiased, 0 trusts the critic alone
    norm: Literal["auto"] | Norm = "auto"  # auto: the estimator's own

    def __post_init__(self) -> None:
        assert self.kl_coef >= 0.0 and 0.0 <= self.gamma <= 1.0 and 0.0 <= self.lambd <= 1.0
        assert self.gamma == 1.0 or ESTIMATORS[self.estimator].discounted, f"{self.estimator} has no discount"
        assert self.lambd == 1.0 or ESTIMATORS[self.estimator].needs_values, f"{self.estimator} has no lambda"
        assert self.std_norm or self.norm == "auto", "std_norm belongs to the estimator's own normalisation"

    @property
    def effective_norm(self) -> Norm:
        if self.norm != "auto":
            return self.norm
        own = ESTIMATORS[self.estimator].norm
        return "mean" if own == "std" and not self.std_norm else own


def _group_sums(values_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the sum of `values_B` over its group and the size of the group."""
    _, index_B, count_G = group_B.unique(return_inverse=True, return_counts=True)
    sum_G = values_B.new_zeros(len(count_G)).index_add_(0, index_B, values_B)
    return sum_G[index_B], count_G[index_B]


def _as_they_are(scores_B: Tensor, group_B: Tensor) -> Tensor:
    return scores_B


def _less_group_mean(scores_B: Tensor, group_B: Tensor) -> Tensor:
    sum_B, count_B = _group_sums(scores_B, group_B)
    return scores_B - sum_B / count_B


def _less_mean_of_the_others(scores_B: Tensor, group_B: Tensor) -> Tensor:
    sum_B, count_B = _group_sums(scores_B, group_B)
    others_B = (sum_B - scores_B) / (count_B - 1).clamp(min=1)
    return torch.where(count_B > 1, scores_B - others_B, 0.0)


def _less_batch_mean(scores_B: Tensor, group_B: Tensor) -> Tensor:
    return scores_B - scores_B.mean()


def _group_z_score(scores_B: Tensor, group_B: Tensor) -> Tensor:
    centred_B = _less_group_mean(scores_B, group_B)
    squares_B, count_B = _group_sums(centred_B.square(), group_B)
    return centred_B / ((squares_B / (count_B - 1).clamp(min=1)).sqrt() + 1e-9)


ESTIMATORS: Mapping[str, Estimator] = {
    "gae": Estimator(
        "GAE: Schulman et al. 2016, arXiv:1506.02438", _as_they_are, norm="std", discounted=True, needs_values=True
    ),
    "reinforce": Estimator("REINFORCE++: Hu et al. 2025, arXiv:2501.03262", _as_they_are, norm="std", discounted=True),
    "reinforce_baseline": Estimator(
        "REINFORCE++-baseline: Hu et al. 2025, arXiv:2501.03262", _less_group_mean, norm="std"
    ),
    "rloo": Estimator("RLOO: Ahmadian et al. 2024, arXiv:2402.14740", _less_mean_of_the_others),
    "group_norm": Estimator("GRPO: Shao et al. 2024, arXiv:2402.03300", _group_z_score),
    "dr_grpo": Estimator("Dr. GRPO: Liu et al. 2025, arXiv:2503.20783", _less_group_mean),
    "flash_reinforce": Estimator(
        "FlashREINFORCE: Hu et al. 2026, github.com/OpenRLHF/OpenRLHF/pull/1339", _less_batch_mean
    ),
}


def advantages(
    scores_B: Tensor,
    group_B: Tensor,
    action_BA: Tensor,
    kl_BA: Tensor | None,
    settings: AdvantageSettings,
    values_BA: Tensor | None = None,
    *,
    turns_BA: Tensor | None = None,
    role_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (what a critic learns), both (B, A), zero where `action_BA` is False.

    `group_B` are integers that say which rows are samples of the same prompt; groups may have any
    sizes and order. A row without siblings has nothing to be compared with: under a group baseline
    its shaped score is 0. `kl_BA` None: no KL penalty. `values_BA`, a critic's, are read by gae only.

    `turns_BA` are the parts of the scores that fell at a turn, at the turn's last action (None: at none). They are
    read by gae and reinforce only. Where the score is clipped its turns shrink in the same proportion, so that the
    rewards of a row always sum to its clipped score. `role_B` are integers that say who played which row; siblings
    are then those of the same role, and a batch is normalised role by role (None: there is one role).
    """
    estimator = ESTIMATORS[settings.estimator]
    dtype = torch.promote_types(scores_B.dtype, torch.float32)
    # Group statistics in float64: among equal float32 scores the rounding of the mean would be
    # divided by a standard deviation of the same size and come out as an advantage near 1.
    shaped_B = raw_B = _shaped_by_role(estimator.shape, scores_B.double(), group_B, role_B).to(dtype)
    if settings.reward_clip is not None:
        shaped_B = shaped_B.clamp(*settings.reward_clip)
    turns_BA = turns_BA if estimator.discounted else None
    if turns_BA is not None:
        turns_BA = turns_BA * (shaped_B / raw_B).nan_to_num(1.0).clamp(0.0, 1.0)[:, None]
    if kl_BA is None and turns_BA is None and settings.gamma == 1.0 and not estimator.needs_values:
        # The whole score falls on the last action: what every action has to go is the score.
        raw_BA = returns_BA = shaped_B[:, None].where(action_BA, 0.0)
        return normalised_by_role(raw_BA, action_BA, settings.effective_norm, role_B), returns_BA
    reward_BA = token_rewards(shaped_B, action_BA, kl_BA, settings.kl_coef, turns_BA)
    if estimator.needs_values:
        assert values_BA is not None, f"{settings.estimator} needs a critic's values"
        raw_BA = generalised_advantages(reward_BA, values_BA, action_BA, settings.gamma, settings.lambd)
        returns_BA = (raw_BA + values_BA).where(action_BA, 0.0)
    else:
        raw_BA = returns_BA = returns_to_go(reward_BA, settings.gamma).where(action_BA, 0.0)
    return normalised_by_role(raw_BA, action_BA, settings.effective_norm, role_B), returns_BA


def _shaped_by_role(shape: Baseline, scores_B: Tensor, group_B: Tensor, role_B: Tensor | None) -> Tensor:
    if role_B is None:
        return shape(scores_B, group_B)
    shaped_B = torch.empty_like(scores_B)
    for role in role_B.unique():
        own_B = role_B == role
        shaped_B[own_B] = shape(scores_B[own_B], group_B[own_B])
    return shaped_B


def generalised_advantages(
    reward_BA: Tensor, values_BA: Tensor, action_BA: Tensor, gamma: float, lambd: float
) -> Tensor:
    """GAE (Schulman et al. 2016, arXiv:1506.02438) from action to action, zero elsewhere.

    delta_i = r_i + gamma V_{i+1} - V_i and A_i = delta_i + gamma lambda A_{i+1}, where i counts the
    actions of a row: what stands between two actions (a tool's output) takes no time. After the last
    action the value is 0.
    """
    result_BA = torch.zeros_like(reward_BA)
    next_value_B, next_advantage_B = reward_BA.new_zeros(2, len(reward_BA))
    for a in reversed(range(reward_BA.shape[1])):
        action_B = action_BA[:, a]
        advantage_B = reward_BA[:, a] + gamma * (next_value_B + lambd * next_advantage_B) - values_BA[:, a]
        next_advantage_B = advantage_B.where(action_B, next_advantage_B)
        next_value_B = values_BA[:, a].where(action_B, next_value_B)
        result_BA[:, a] = advantage_B.where(action_B, 0.0)
    return result_BA


def token_rewards(
    scores_B: Tensor, action_BA: Tensor, kl_BA: Tensor | None, kl_coef: float, turns_BA: Tensor | None = None
) -> Tensor:
    """(B, A): minus the KL penalty on every action, plus the score on the last action of the row.

    With `turns_BA` those parts of the score are where they fell, and the last action has the rest.
    """
    last_BA = action_BA & (action_BA.cumsum(1) == action_BA.sum(1, keepdim=True))
    if turns_BA is None:
        reward_BA = scores_B[:, None] * last_BA
    else:
        assert not turns_BA[~action_BA].any(), "a turn's reward is given to an action"
        reward_BA = (scores_B - turns_BA.sum(1))[:, None] * last_BA + turns_BA
    if kl_BA is None or kl_coef == 0.0:
        return reward_BA
    return reward_BA - kl_coef * kl_BA.where(action_BA, 0.0)


def returns_to_go(reward_BA: Tensor, gamma: float) -> Tensor:
    """G_a = r_a + gamma G_{a+1}, over all positions (a gap between actions discounts too)."""
    if gamma == 1.0:
        return reward_BA.flip(1).cumsum(1).flip(1)
    returns_BA = torch.empty_like(reward_BA)
    running_B = reward_BA.new_zeros(reward_BA.shape[0])
    for a in reversed(range(reward_BA.shape[1])):
        running_B = reward_BA[:, a] + gamma * running_B
        returns_BA[:, a] = running_B
    return returns_BA


def normalised_by_role(values_BA: Tensor, action_BA: Tensor, norm: Norm, role_B: Tensor | None) -> Tensor:
    """`normalised`, with the statistics of the row's own role."""
    if role_B is None:
        return normalised(values_BA, action_BA, norm)
    result_BA = torch.zeros_like(values_BA)
    for role in role_B.unique():
        own_BA = action_BA & (role_B == role)[:, None]
        result_BA = normalised(values_BA, own_BA, norm).where(own_BA, result_BA)
    return result_BA


def normalised(values_BA: Tensor, action_BA: Tensor, norm: Norm) -> Tensor:
    """The values with statistics over all actions of the batch taken out of them, as `norm` says."""
    if norm == "none" or not action_BA.any():
        return values_BA
    flat_N = on_actions(values_BA, action_BA).double()
    scale = flat_N.var(correction=0).clamp(min=1e-8).rsqrt() if norm == "std" else 1.0
    return ((values_BA - flat_N.mean()) * scale).to(values_BA.dtype).where(action_BA, 0.0)


def on_actions(values_BA: Tensor, action_BA: Tensor) -> Tensor:
    """(N,) `values_BA[action_BA]`, on a CPU and without gradient: numpy selects ten times as fast as torch."""
    return torch.from_numpy(values_BA.numpy()[action_BA.numpy()])
