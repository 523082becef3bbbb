"""KL, log-probs, policy losses, mismatch corrections and the value loss against openrlhf 0.11.2's, with gradients."""

from __future__ import annotations

import pytest
import torch
from parity_tensors import B, close, close_with_gradient, float64, micro_batch

from openrlhf_ext.batch.split import denominators
from openrlhf_ext.ops.kl import KL_ESTIMATORS, approximate_kl
from openrlhf_ext.ops.logprobs import chunked_logprobs
from openrlhf_ext.ops.mismatch import CorrectionSettings
from openrlhf_ext.ops.policy_loss import PolicyLossSettings
from openrlhf_ext.ports import ModelOutput, ValueOutput
from openrlhf_ext.trainers.objectives import PolicyObjective, ValueObjective

HALF = slice(0, B // 2)  # with the denominators of the whole batch: what one rank of two computes
AGGREGATIONS = ["token-mean", "seq-mean-token-mean"]
CLIPS = [(0.2, 0.2, None), (0.1, 0.3, None), (0.2, 0.28, 1.5)]
CORRECTIONS = [
    CorrectionSettings("token", "clip", "ratio", 0.7, 1.5),
    CorrectionSettings("token", "mask", "ratio", 0.7, 1.5),
    CorrectionSettings("seq", "mask", "ratio", 0.85, 1.15),
    CorrectionSettings("token", "mask", "binary_kl", 0.0, 0.01),
    CorrectionSettings("seq", "mask", "binary_kl", 0.0, 0.012),
    CorrectionSettings("token", "mask", "tv", 0.0, 0.04),
    CorrectionSettings("seq", "mask", "tv", 0.0, 0.04),
]


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_kl(openrlhf, columns, estimator, unbiased, moved):
    """Theirs is taken in float32 whatever comes in; the values far apart exercise the bounds."""
    for scale in (1.0, 40.0):
        logp, ref_logp = (scale * columns.logp).requires_grad_(), scale * columns.ref_logp
        old_logp = scale * columns.old_logp if moved else None
        ours = approximate_kl(logp, ref_logp, estimator, unbiased=unbiased, old_logp=old_logp)
        theirs = openrlhf.ops.compute_approx_kl(logp, ref_logp, old_logp, estimator, unbiased)
        close(ours, theirs, 1e-5)
        close(*(torch.autograd.grad(kl.sum(), logp)[0] for kl in (ours, theirs)), 1e-5)


def both_losses(openrlhf, columns, objective):
    """Our objective and their loss on half of the batch, and their report."""
    level, mode, gating, band = "off", "mask", "ratio", (0.5, 5.0)
    if chosen := objective.correction:
        level, mode, gating, band = chosen.level, chosen.mode, chosen.gating, (chosen.low, chosen.high)
    reference = openrlhf.loss.PolicyLoss(
        objective.loss.clip_low,
        objective.loss.clip_high,
        objective.loss.dual_clip,
        token_level_loss=objective.aggregation == "token-mean",
        policy_loss_type=objective.loss.kind,
        is_correction_level=level,
        is_correction_mode=mode,
        is_correction_gating=gating,
        is_correction_threshold=band,
    )
    totals = denominators(columns.action)
    theirs = reference(
        columns.logp[HALF],
        columns.old_logp[HALF],
        columns.advantages[HALF],
        columns.action[HALF],
        rollout_log_probs=columns.sampler_logp[HALF],
        batch_num_tokens=totals.tokens,
        global_batch_size=totals.sequences,
    )
    return objective(ModelOutput(columns.logp[HALF]), micro_batch(columns, HALF), totals), theirs


@pytest.mark.parametrize(("low", "high", "dual"), CLIPS)
@pytest.mark.parametrize(
    ("kind", "mode"), [("ppo", AGGREGATIONS[0]), ("ppo", AGGREGATIONS[1]), ("gspo", AGGREGATIONS[1])]
)
def test_policy_loss(openrlhf, columns, kind, mode, low, high, dual):
    columns.logp.requires_grad_()
    objective = PolicyObjective(PolicyLossSettings(kind, low, high, dual), mode)
    (ours, report), (theirs, clip_fraction, ppo_kl, _, _) = both_losses(openrlhf, columns, objective)
    close_with_gradient(ours, theirs, columns.logp)
    assert report["policy_kl"].value == pytest.approx(ppo_kl.item())
    if dual is None:  # theirs leaves the tokens that the dual clip stops out of the fraction
        assert report["clip_fraction"].value == pytest.approx(clip_fraction.item())


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("settings", CORRECTIONS, ids=lambda s: f"{s.level}-{s.mode}-{s.gating}")
def test_correction(openrlhf, columns, settings, mode):
    columns.logp.requires_grad_()
    objective = PolicyObjective(aggregation=mode, correction=settings)
    (ours, report), (theirs, _, _, sampler_kl, filtered) = both_losses(openrlhf, columns, objective)
    close_with_gradient(ours, theirs, columns.logp)
    assert 0.0 < filtered < 1.0
    assert report["mismatch/filtered"].value == pytest.approx(filtered.item())
    assert report["mismatch/kl"].value == pytest.approx(sampler_kl.item())


@pytest.mark.parametrize("settings", CORRECTIONS[:3], ids=lambda s: f"{s.level}-{s.mode}-{s.gating}")
def test_gspo_is_corrected_by_its_own_ratio(openrlhf, columns, settings):
    columns.logp.requires_grad_()
    objective = PolicyObjective(PolicyLossSettings("gspo"), AGGREGATIONS[1], correction=settings)
    (ours, _), (theirs, *_) = both_losses(openrlhf, columns, objective)
    close_with_gradient(ours, theirs, columns.logp)


@pytest.mark.parametrize("clip", [None, 0.2, 0.5])
def test_value_loss(openrlhf, columns, clip):
    columns.values.requires_grad_()
    totals = denominators(columns.action)
    theirs = openrlhf.loss.ValueLoss(clip)(
        columns.values[HALF],
        columns.old_values[HALF],
        columns.returns[HALF],
        columns.action[HALF],
        batch_num_tokens=totals.tokens,
        global_batch_size=totals.sequences,
    )
    ours, report = ValueObjective(clip)(ValueOutput(columns.values[HALF]), micro_batch(columns, HALF), totals)
    close_with_gradient(ours, theirs, columns.values)
    assert clip is None or 0.0 < report["clip_fraction"].value < 1.0


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_whole_loss_of_the_policy(openrlhf, columns, estimator, unbiased):
    """Policy loss, KL and entropy bonus with their coefficients, put together as their actor does it."""
    logp_BA, entropy_BA = columns.logp.requires_grad_(), columns.entropy
    totals = denominators(columns.action)
    info = {"batch_num_tokens": totals.tokens, "global_batch_size": totals.sequences}
    policy, *_ = openrlhf.loss.PolicyLoss(0.2, 0.28, is_correction_level="token", is_correction_threshold=[0.7, 1.5])(
        logp_BA, columns.old_logp, columns.advantages, columns.action, columns.sampler_logp, **info
    )
    kl_BA = openrlhf.ops.compute_approx_kl(logp_BA, columns.ref_logp, columns.old_logp, estimator, unbiased)
    kl, entropy = (openrlhf.loss.aggregate_loss(x, columns.action, **info) for x in (kl_BA, entropy_BA))
    theirs = policy + 0.3 * kl - 0.1 * entropy
    objective = PolicyObjective(
        PolicyLossSettings("ppo", 0.2, 0.28),
        correction=CorrectionSettings("token", "mask", "ratio", 0.7, 1.5),
        kl_coef=0.3,
        kl_estimator=estimator,
        kl_unbiased=unbiased,
        entropy_coef=0.1,
    )
    ours, _ = objective(ModelOutput(logp_BA, entropy_BA), micro_batch(columns), totals)
    close_with_gradient(ours, theirs, logp_BA)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_tokens(openrlhf, temperature):
    generator = torch.Generator().manual_seed(2)
    hidden_NH, weight_VH = float64(generator, 20, 4), float64(generator, 30, 4)
    targets_N = torch.randint(30, (20,), generator=generator)
    ours, _ = chunked_logprobs(hidden_NH, lambda h: h @ weight_VH.T, targets_N, chunk=7, temperature=temperature)
    close(ours, openrlhf.ops.log_probs_from_logits(hidden_NH @ weight_VH.T, targets_N, temperature))
