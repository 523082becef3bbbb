"""Weights against the mismatch of trainer and sampler.

The engine that samples and the model that trains give slightly different probabilities to the same
token, even under the same weights; after an update they differ more. The loss of a token is then
multiplied by the importance weight w = p_trainer / p_sampler, unless trainer and sampler are too far
apart to be corrected. What is called what:

  TIS              token, clip, ratio      Yao et al. 2025, fengyao.notion.site/off-policy-rl
  IcePop           token, mask, ratio      Ling team 2025, arXiv:2510.18855
  seq-mask-TIS     seq, mask, ratio        Liu et al. 2025, "When Speed Kills Stability"
  FlashREINFORCE   seq, mask, binary_kl    Hu et al. 2026, github.com/OpenRLHF/OpenRLHF/pull/1339
  DPPO's regions   token, mask, tv or binary_kl    Qi et al. 2026, arXiv:2602.04879
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PROBABILITY_MARGIN = 1e-6  # keeps the logarithms of a binary KL finite
LOG_WEIGHT_LIMIT = 20.0  # exp of it is finite in every float type in use


@dataclass(frozen=True, slots=True)
class CorrectionSettings:
    """Units outside [low, high] are dropped (mask) or their weight is cut to the bounds (clip).

    `level` is the unit, a token or a whole sequence; `gating` what of it is held against the bounds:

      ratio        the weight w, of a sequence the geometric mean of its tokens'
      binary_kl    KL(sampler || trainer) of "this token or another one", of a sequence the mean
      tv           the same with the total variation distance, |p_sampler - p_trainer|

    What is kept has the weights of its tokens, whatever was gated by. Only the weight of a token can
    be clipped, and a divergence has no lower bound.
    """

    level: Literal["token", "seq"]
    mode: Literal["mask", "clip"]
    gating: Literal["ratio", "binary_kl", "tv"]
    low: float
    high: float

    def __post_init__(self) -> None:
        assert self.level in ("token", "seq") and self.mode in ("mask", "clip")
        assert self.gating in ("ratio", "binary_kl", "tv")
        assert 0.0 <= self.low < self.high
        assert self.mode == "mask" or (self.level, self.gating) == ("token", "ratio"), "only a token's weight is cut"
        assert self.gating == "ratio" or self.low == 0.0, "a divergence has an upper bound only"


@dataclass(frozen=True, slots=True)
class Correction:
    """What the loss of each token is multiplied by, and which tokens were out of bounds. Without gradient."""

    weight_BA: Tensor
    filtered_BA: Tensor  # bool, False off actions; of a sequence out of bounds every action


@torch.no_grad()
def correction(
    old_logp_BA: Tensor, sampler_logp_BA: Tensor, action_BA: Tensor, settings: CorrectionSettings
) -> Correction:
    """The weights of the trainer's log-probs (before the update) against the sampler's; 1 off actions."""
    log_weight_BA = (old_logp_BA - sampler_logp_BA).where(action_BA, 0.0)
    weight_BA = log_weight_BA.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT).exp()
    if settings.gating == "ratio":
        # Compared as logarithms: the mean over a sequence is taken of them.
        gated_BA, low, high = log_weight_BA, _log(settings.low), _log(settings.high)
    else:
        gated_BA, low, high = _divergence(sampler_logp_BA, old_logp_BA, settings.gating), 0.0, settings.high
    if settings.level == "seq":
        gated_BA = (gated_BA * action_BA).sum(1, keepdim=True) / action_BA.sum(1, keepdim=True).clamp(min=1)
    filtered_BA = ((gated_BA < low) | (gated_BA > high)) & action_BA
    if settings.mode == "clip":
        return Correction(weight_BA.clamp(settings.low, settings.high).where(action_BA, 1.0), filtered_BA)
    return Correction(weight_BA.masked_fill(filtered_BA, 0.0), filtered_BA)


def _log(bound: float) -> float:
    return math.log(bound) if bound > 0.0 else -math.inf


def _divergence(sampler_logp_BA: Tensor, old_logp_BA: Tensor, kind: str) -> Tensor:
    p_BA, q_BA = (x.exp().clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN) for x in (sampler_logp_BA, old_logp_BA))
    if kind == "tv":
        return (p_BA - q_BA).abs()
    return p_BA * (p_BA / q_BA).log() + (1 - p_BA) * ((1 - p_BA) / (1 - q_BA)).log()
