"""Per-token estimates of KL(policy || reference) from the log-probs of sampled tokens.

J. Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html. With
r = log p_policy - log p_reference of a token sampled from the policy:

  k1 = r                  unbiased, high variance, may be negative
  k2 = r^2 / 2            biased, low variance; its gradient is that of the true KL
  k3 = exp(-r) - 1 + r    unbiased and never negative
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LIMIT = 10.0  # bounds every estimate, so that one odd token cannot take over a batch


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def _k3(log_ratio: Tensor) -> Tensor:
    # Bounded before exp: below -LIMIT the estimate is past the limit anyway, and an overflowing exp
    # would turn its zero gradient into inf * 0.
    log_ratio = log_ratio.clamp(min=-LIMIT)
    return torch.expm1(-log_ratio) + log_ratio


KL_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


def approximate_kl(logp: Tensor, ref_logp: Tensor, estimator: str = "k1") -> Tensor:
    """The estimate at every position in nats, within [-10, 10]; zero where both log-probs are zero.

    Differentiable in `logp`: as a loss use k2 or k3 (the gradient of k1 has the expectation zero).
    """
    return KL_ESTIMATORS[estimator](logp - ref_logp).clamp(-LIMIT, LIMIT)
