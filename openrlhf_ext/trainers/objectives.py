"""The losses that a rank runs: frozen values, so that they travel to the workers as they are.

An objective sees one micro-batch and returns its part of the step's loss: parts are added, never averaged.
Its report has bare names (`loss`); the driver puts the role's name before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.ops.aggregate import aggregate
from openrlhf_ext.ops.kl import approximate_kl
from openrlhf_ext.ops.policy_loss import PolicyLossSettings, policy_loss, policy_report
from openrlhf_ext.ports import ModelOutput
from openrlhf_ext.types import Metric


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Policy loss + kl_coef * KL(policy || reference) - entropy_coef * entropy.

    It reads the columns `advantages` and `sampler_logp`, `old_logp` where there is one (otherwise the policy has
    not moved since it was sampled from: `logp.detach()` stands in) and, with `kl_coef` above 0, `ref_logp`.
    KL and entropy are means over tokens whatever `aggregation` is. With `entropy_coef` None the entropy is not
    computed, with 0.0 it is only reported.
    """

    loss: PolicyLossSettings = field(default_factory=PolicyLossSettings)
    aggregation: str = "token-mean"  # a name in ops.aggregate.AGGREGATIONS
    kl_coef: float = 0.0  # of the KL in the loss; a KL in the reward is none of its business
    kl_estimator: str = "k3"  # a name in ops.kl.KL_ESTIMATORS
    entropy_coef: float | None = None
    temperature: float = 1.0

    @property
    def needs_entropy(self) -> bool:
        return self.entropy_coef is not None

    def __call__(
        self, output: ModelOutput, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        logp_BA, action_BA, columns = output.logp_BA, micro.action_BA, micro.columns
        old_logp_BA = columns.get("old_logp", logp_BA.detach())
        tokens = policy_loss(logp_BA, old_logp_BA, columns["advantages"], action_BA, self.loss)
        policy = aggregate(tokens.loss_BA, action_BA, denominators, self.aggregation)
        report = policy_report(tokens, logp_BA, old_logp_BA, action_BA)
        report |= mismatch_report(old_logp_BA, columns["sampler_logp"], action_BA)
        parts, total = {"policy_loss": policy}, policy
        if self.kl_coef > 0.0:
            kl_BA = approximate_kl(logp_BA, columns["ref_logp"], self.kl_estimator)
            parts["kl"] = aggregate(kl_BA, action_BA, denominators)
            total = total + self.kl_coef * parts["kl"]
        if self.entropy_coef is not None:
            assert output.entropy_BA is not None, "the engine computes the entropy where it is needed"
            parts["entropy"] = aggregate(output.entropy_BA, action_BA, denominators)
            total = total - self.entropy_coef * parts["entropy"]
        return total, report | _parts_report({"loss": total, **parts}, denominators, action_BA)


@dataclass(frozen=True, slots=True)
class SftObjective:
    """Negative log-likelihood of the tokens to be learned."""

    aggregation: str = "token-mean"
    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(
        self, output: ModelOutput, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        loss = aggregate(-output.logp_BA, micro.action_BA, denominators, self.aggregation)
        return loss, _parts_report({"loss": loss}, denominators, micro.action_BA)


def mismatch_report(logp_BA: Tensor, sampler_logp_BA: Tensor, action_BA: Tensor) -> dict[str, Metric]:
    """How far the trainer's log-probs are from the sampler's, over actions and in nats; empty without actions.

    `mismatch/abs` and `mismatch/abs_max` of the difference, and `mismatch/kl`, the k1 estimate of
    KL(sampler || trainer).
    """
    count = int(action_BA.sum())
    if not count:
        return {}
    gap_N = (sampler_logp_BA - logp_BA.detach())[action_BA]
    distance, largest, kl = torch.stack([gap_N.abs().sum(), gap_N.abs().max(), gap_N.sum()]).tolist()
    return {
        "mismatch/abs": Metric(distance, count),
        "mismatch/abs_max": Metric(largest, count, "max"),
        "mismatch/kl": Metric(kl, count),
    }


def _parts_report(parts: Mapping[str, Tensor], denominators: Denominators, action_BA: Tensor) -> dict[str, Metric]:
    """Parts of the step's loss as means weighted by tokens: merged over a step they give its loss exactly."""
    count = int(action_BA.sum())
    if not count:
        return {}
    values = (torch.stack([part.detach() for part in parts.values()]) * denominators.tokens).tolist()
    return {name: Metric(value, count) for name, value in zip(parts, values, strict=True)}
