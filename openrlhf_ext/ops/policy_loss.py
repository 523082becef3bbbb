"""Policy losses, per token. Their sum over a batch is taken in `ops.aggregate`.

All have one signature. The action mask is among the arguments for losses whose ratio belongs to
the sequence (GSPO); what they give off actions is never read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_ext.types import Metric

# exp of it is finite in every float type in use; a token that far off is clipped anyway.
LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True, slots=True)
class PolicyLossSettings:
    kind: str = "ppo"  # a name in POLICY_LOSSES
    clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2
    dual_clip: float | None = None  # above 1; of the losses that are surrogates (ppo, gspo)

    def __post_init__(self) -> None:
        assert self.kind in POLICY_LOSSES, f"no policy loss is called {self.kind}"
        assert self.clip_low >= 0.0 and self.clip_high >= 0.0
        assert self.dual_clip is None or (self.dual_clip > 1.0 and self.kind != "cispo")


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The loss of each token, and for the metrics its ratio and whether clipping changed its gradient.

    A clipped token of ppo and gspo adds nothing to the gradient; one of cispo keeps its gradient,
    with the clipped ratio as its weight.
    """

    loss_BA: Tensor
    ratio_BA: Tensor  # detached
    clipped_BA: Tensor  # bool


PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor, PolicyLossSettings], TokenLoss]


def ppo(
    logp_BA: Tensor, old_logp_BA: Tensor, advantages_BA: Tensor, action_BA: Tensor, settings: PolicyLossSettings
) -> TokenLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347).

    Unequal bounds are DAPO's clip-higher (Yu et al. 2025, arXiv:2503.14476). `dual_clip` c bounds
    the loss of a token of negative advantage to -c A (Ye et al. 2020, arXiv:1912.09729).
    """
    return _surrogate(_ratio(logp_BA - old_logp_BA), advantages_BA, action_BA, settings)


def gspo(
    logp_BA: Tensor, old_logp_BA: Tensor, advantages_BA: Tensor, action_BA: Tensor, settings: PolicyLossSettings
) -> TokenLoss:
    """PPO's surrogate with one ratio for a row: the geometric mean over its actions (GSPO, Zheng et al. 2025).

    arXiv:2507.18071. A clipped sequence has no gradient at all where the advantages of its tokens are
    equal; the loss is one of sequences, so aggregate it by seq-mean-token-mean.
    """
    log_ratio_BA = (logp_BA - old_logp_BA).where(action_BA, 0.0)
    mean_B1 = log_ratio_BA.sum(1, keepdim=True) / action_BA.sum(1, keepdim=True).clamp(min=1)
    return _surrogate(_ratio(mean_B1).expand_as(logp_BA), advantages_BA, action_BA, settings)


def cispo(
    logp_BA: Tensor, old_logp_BA: Tensor, advantages_BA: Tensor, action_BA: Tensor, settings: PolicyLossSettings
) -> TokenLoss:
    """REINFORCE with the clipped ratio as a constant weight (MiniMax-M1 2025, arXiv:2506.13585).

    No token loses its gradient. The paper bounds the weight from above only: `clip_low` 1.
    """
    ratio_BA = _ratio(logp_BA.detach() - old_logp_BA)
    weight_BA = _clipped(ratio_BA, settings)
    return TokenLoss(-weight_BA * advantages_BA * logp_BA, ratio_BA, (weight_BA != ratio_BA) & action_BA)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _clipped(ratio: Tensor, settings: PolicyLossSettings) -> Tensor:
    return ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)


def _surrogate(ratio_BA: Tensor, advantages_BA: Tensor, action_BA: Tensor, settings: PolicyLossSettings) -> TokenLoss:
    free_BA = ratio_BA * advantages_BA
    bound_BA = _clipped(ratio_BA, settings) * advantages_BA
    gain_BA = torch.minimum(free_BA, bound_BA)
    clipped_BA = bound_BA < free_BA
    if settings.dual_clip is not None:
        floor_BA = settings.dual_clip * advantages_BA
        dual_BA = (advantages_BA < 0) & (gain_BA < floor_BA)
        gain_BA = torch.where(dual_BA, floor_BA, gain_BA)
        clipped_BA = clipped_BA | dual_BA
    return TokenLoss(-gain_BA, ratio_BA.detach(), clipped_BA & action_BA)


POLICY_LOSSES: Mapping[str, PolicyLoss] = {"ppo": ppo, "gspo": gspo, "cispo": cispo}


def policy_loss(
    logp_BA: Tensor, old_logp_BA: Tensor, advantages_BA: Tensor, action_BA: Tensor, settings: PolicyLossSettings
) -> TokenLoss:
    """The loss that the settings name. On the first step on a batch `old_logp_BA` may be `logp_BA.detach()`."""
    return POLICY_LOSSES[settings.kind](logp_BA, old_logp_BA, advantages_BA, action_BA, settings)


def policy_report(tokens: TokenLoss, logp_BA: Tensor, old_logp_BA: Tensor, action_BA: Tensor) -> dict[str, Metric]:
    """Over actions: `clip_fraction`, `ratio` with `ratio_min` and `ratio_max`, and `policy_kl`.

    `policy_kl` is the k1 estimate of KL(old || new). Empty without actions.
    """
    if not action_BA.numel():
        return {}
    ratio_BA, gap_BA = tokens.ratio_BA, (old_logp_BA - logp_BA.detach()).where(action_BA, 0.0)
    sums = [action_BA.sum(), tokens.clipped_BA.sum(), ratio_BA.where(action_BA, 0.0).sum(), gap_BA.sum()]
    ends = [ratio_BA.where(action_BA, math.inf).amin(), ratio_BA.where(action_BA, -math.inf).amax()]
    # One transfer for all of them: each would otherwise wait for the device by itself.
    count, clipped, ratio, moved, ratio_min, ratio_max = torch.stack(sums + ends).tolist()
    if not count:
        return {}
    return {
        "clip_fraction": Metric(clipped, count),
        "ratio": Metric(ratio, count),
        "ratio_min": Metric(ratio_min, count, "min"),
        "ratio_max": Metric(ratio_max, count, "max"),
        "policy_kl": Metric(moved, count),
    }
