"""Per-token estimates of KL(policy || reference) from the log-probs of sampled tokens, and its coefficient.

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
WEIGHT_LIMIT = 10.0  # of an importance weight in the unbiased gradient
ERROR_LIMIT = 0.2  # of the relative error that moves the coefficient


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


def approximate_kl(
    logp: Tensor,
    ref_logp: Tensor,
    estimator: str = "k1",
    *,
    unbiased: bool = False,
    old_logp: Tensor | None = None,
) -> Tensor:
    """The estimate at every position in nats, within [-10, 10]; zero where all log-probs are zero.

    Differentiable in `logp`: as a loss use k2 or k3 (the gradient of k1 has the expectation zero).

    With `unbiased` the value is the same and the gradient is, for every estimator, an unbiased one of
    the KL at a position: that of k2 (Tang and Munos 2025, arXiv:2506.09477), weighted for tokens that
    were sampled from an older policy by the constant exp(logp - old_logp), at most 10 (1 without it).
    """
    log_ratio = logp - ref_logp
    value = KL_ESTIMATORS[estimator](log_ratio).clamp(-LIMIT, LIMIT)
    if not unbiased:
        return value
    path = _k2(log_ratio)
    if old_logp is not None:
        path = path * (logp.detach() - old_logp).exp().clamp(max=WEIGHT_LIMIT)
    return value.detach() + (path - path.detach())


def adapted_kl_coef(coef: float, observed_kl: float, *, target: float, horizon: float, samples: int) -> float:
    """The coefficient after `samples` more samples: up where the KL is above its target, down below.

    Proportional control of its logarithm (Ziegler et al. 2019, arXiv:1909.08593, section 2.2): the
    relative error counts within +-20 %, and `horizon` is the number of samples in which an error of
    1 would double it.
    """
    assert target > 0.0 and horizon > 0.0
    error = min(max(observed_kl / target - 1.0, -ERROR_LIMIT), ERROR_LIMIT)
    return coef * (1.0 + error * samples / horizon)
