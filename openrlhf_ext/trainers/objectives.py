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
from openrlhf_ext.ops.mismatch import Correction, CorrectionSettings, correction
from openrlhf_ext.ops.policy_loss import PolicyLossSettings, policy_loss, policy_report
from openrlhf_ext.ops.value_loss import value_loss
from openrlhf_ext.ports import ModelOutput, ValueOutput
from openrlhf_ext.types import Metric


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Policy loss + kl_coef * KL(policy || reference) - entropy_coef * entropy.

    It reads the columns `advantages` and `sampler_logp`, `old_logp` where there is one (otherwise the policy has
    not moved since it was sampled from: `logp.detach()` stands in) and, with `kl_coef` above 0, `ref_logp`.
    KL and entropy are means over tokens whatever `aggregation` is. With `entropy_coef` None the entropy is not
    computed, with 0.0 it is only reported.

    With a `correction` every token's policy loss has its weight against the mismatch of trainer and sampler. The
    ratio of gspo belongs to the sequence: there the correction is to take the ratio against the sampler itself.
    """

    loss: PolicyLossSettings = field(default_factory=PolicyLossSettings)
    aggregation: str = "token-mean"  # a name in ops.aggregate.AGGREGATIONS
    max_tokens: int | None = None  # that an answer may have, for seq-mean-token-sum-norm
    correction: CorrectionSettings | None = None
    kl_coef: float = 0.0  # of the KL in the loss; a KL in the reward is none of its business
    kl_estimator: str = "k3"  # a name in ops.kl.KL_ESTIMATORS
    kl_unbiased: bool = False  # the estimator's value, but the gradient of the true KL
    entropy_coef: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        assert self.loss.kind != "gspo" or self.aggregation == "seq-mean-token-mean", "gspo is a loss of sequences"

    @property
    def needs_entropy(self) -> bool:
        return self.entropy_coef is not None

    def __call__(
        self, output: ModelOutput, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        logp_BA, action_BA, columns = output.logp_BA, micro.action_BA, micro.columns
        old_logp_BA = columns.get("old_logp", logp_BA.detach())
        policy, report = self._policy_part(logp_BA, old_logp_BA, micro, denominators)
        parts, total = {"policy_loss": policy}, policy
        if self.kl_coef > 0.0:
            kl_BA = approximate_kl(
                logp_BA, columns["ref_logp"], self.kl_estimator, unbiased=self.kl_unbiased, old_logp=old_logp_BA
            )
            parts["kl"] = aggregate(kl_BA, action_BA, denominators)
            total = total + self.kl_coef * parts["kl"]
        if self.entropy_coef is not None:
            assert output.entropy_BA is not None, "the engine computes the entropy where it is needed"
            parts["entropy"] = aggregate(output.entropy_BA, action_BA, denominators)
            total = total - self.entropy_coef * parts["entropy"]
        return total, report | _parts_report({"loss": total, **parts}, denominators, action_BA)

    def _policy_part(
        self, logp_BA: Tensor, old_logp_BA: Tensor, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        action_BA, sampler_logp_BA = micro.action_BA, micro.columns["sampler_logp"]
        against_sampler = self.correction is not None and self.loss.kind == "gspo"
        base_BA = sampler_logp_BA if against_sampler else old_logp_BA
        tokens = policy_loss(logp_BA, base_BA, micro.columns["advantages"], action_BA, self.loss)
        report = policy_report(tokens, logp_BA, old_logp_BA, action_BA)
        report |= mismatch_report(old_logp_BA, sampler_logp_BA, action_BA)
        loss_BA = tokens.loss_BA
        if self.correction is not None and not against_sampler:
            corrected = correction(old_logp_BA, sampler_logp_BA, action_BA, self.correction)
            loss_BA = loss_BA * corrected.weight_BA
            report |= _correction_report(corrected, action_BA, self.correction)
        return aggregate(loss_BA, action_BA, denominators, self.aggregation, self.max_tokens), report


@dataclass(frozen=True, slots=True)
class ValueObjective:
    """A critic's squared error against the returns, clipped around the old values.

    It reads the columns `values` (those of the critic before the update) and `returns`. What explained variance is
    made of is reported in parts that merge: 1 - error_square / (return_square - return ** 2).
    """

    clip: float | None = 0.5  # how far a value may move from the old one; None: any
    aggregation: str = "token-mean"
    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(
        self, output: ValueOutput, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        values_BA, action_BA, returns_BA = output[0], micro.action_BA, micro.columns["returns"]
        loss_BA, clipped_BA = value_loss(values_BA, micro.columns["values"], returns_BA, self.clip)
        loss = aggregate(loss_BA, action_BA, denominators, self.aggregation)
        seen_BA = values_BA.detach()
        means = {
            "value": seen_BA,
            "return": returns_BA,
            "return_square": returns_BA.square(),
            "error_square": (seen_BA - returns_BA).square(),
            "clip_fraction": clipped_BA,
        }
        return loss, _token_means(means, action_BA) | _parts_report({"loss": loss}, denominators, action_BA)


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


def _correction_report(corrected: Correction, action_BA: Tensor, settings: CorrectionSettings) -> dict[str, Metric]:
    """`mismatch/filtered`: the fraction of the units out of bounds; `mismatch/weight`: the mean weight of a token."""
    if settings.level == "token":
        filtered, units = corrected.filtered_BA, action_BA
    else:
        filtered, units = corrected.filtered_BA.any(1), action_BA.any(1)
    sums = torch.stack([filtered.sum(), units.sum(), corrected.weight_BA.where(action_BA, 0.0).sum(), action_BA.sum()])
    out, count, weight, tokens = sums.tolist()
    return {"mismatch/filtered": Metric(out, count), "mismatch/weight": Metric(weight, tokens)} if tokens else {}


def _token_means(columns: Mapping[str, Tensor], action_BA: Tensor) -> dict[str, Metric]:
    sums = torch.stack([action_BA.sum(), *(column.where(action_BA, 0.0).double().sum() for column in columns.values())])
    count, *totals = sums.tolist()
    return {name: Metric(total, count) for name, total in zip(columns, totals, strict=True)} if count else {}


def _parts_report(parts: Mapping[str, Tensor], denominators: Denominators, action_BA: Tensor) -> dict[str, Metric]:
    """Parts of the step's loss as means weighted by tokens: merged over a step they give its loss exactly."""
    count = int(action_BA.sum())
    if not count:
        return {}
    values = (torch.stack([part.detach() for part in parts.values()]) * denominators.tokens).tolist()
    return {name: Metric(value, count) for name, value in zip(parts, values, strict=True)}
