"""Our update against that of trl's own trainers, from the same rewards and log-probs: advantages, loss, gradient.

Where the two differ by design nothing is compared: trl's sequence-level importance ratios are products, not
geometric means; under its `grpo` a KL is averaged as the policy loss is, where ours is a mean over tokens.
"""

from __future__ import annotations

import pytest
import torch
from parity_tensors import GROUP, A, B, close, close_with_gradient, micro_batch
from trl_update import grpo_update, rloo_advantages

from openrlhf_ext.batch.split import denominators
from openrlhf_ext.ops.advantage import AdvantageSettings, advantages
from openrlhf_ext.ops.mismatch import CorrectionSettings
from openrlhf_ext.ops.policy_loss import PolicyLossSettings
from openrlhf_ext.ports import ModelOutput
from openrlhf_ext.trainers.objectives import PolicyObjective

GROUP_B = torch.arange(B) // GROUP
AGGREGATION = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "cispo": "token-mean",
}


@pytest.fixture(autouse=True)
def double():
    """They make tensors of lists: with this they are as exact as the rest."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def our_update(columns, objective, estimator="dr_grpo"):
    """Advantages and loss of the same update, ours."""
    columns.advantages, _ = advantages(columns.scores, GROUP_B, columns.action, None, AdvantageSettings(estimator))
    output = ModelOutput(columns.logp, columns.entropy)
    loss, report = objective(output, micro_batch(columns), denominators(columns.action))
    assert report["clip_fraction"].value > 0.0, "clipping is part of the comparison"
    return columns.advantages, loss


def same_update(trl, columns, objective, **settings):
    columns.logp.requires_grad_()
    our_advantages, ours = our_update(columns, objective)
    their_advantages, theirs = grpo_update(trl, columns, **settings)
    close(our_advantages, their_advantages[:, None] * columns.action)
    close_with_gradient(ours, theirs, columns.logp)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.3)])
@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_clipped_surrogates_and_their_means(trl, columns, kind, low, high):
    objective = PolicyObjective(PolicyLossSettings("ppo", low, high), AGGREGATION[kind], max_tokens=2 * A)
    same_update(trl, columns, objective, loss_type=kind, epsilon_low=low, epsilon_high=high)


def test_two_sided_clipping_is_the_dual_clip(trl, columns):
    objective = PolicyObjective(PolicyLossSettings("ppo", 0.2, 0.2, dual_clip=1.3))
    same_update(trl, columns, objective, loss_type="dapo", delta=1.3)


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.05), (0.03, 0.08)])
def test_gspo(trl, columns, low, high):
    objective = PolicyObjective(PolicyLossSettings("gspo", low, high), AGGREGATION["grpo"])
    same_update(trl, columns, objective, importance_sampling_level="sequence", epsilon_low=low, epsilon_high=high)


@pytest.mark.parametrize("bound", [1.2, 5.0])
def test_cispo(trl, columns, bound):
    """Their bound is that of the ratio itself."""
    columns.old_logp[0, 0] = columns.logp[0, 0] - 2.0
    objective = PolicyObjective(PolicyLossSettings("cispo", clip_low=1.0, clip_high=bound - 1.0))
    same_update(trl, columns, objective, loss_type="cispo", epsilon_high=bound)


def test_kl_in_the_loss(trl, columns):
    objective = PolicyObjective(kl_coef=0.3, kl_estimator="k3")
    same_update(trl, columns, objective, loss_type="dapo", beta=0.3)


def test_the_unbiased_gradient_of_the_kl_is_their_bias_correction(trl, columns):
    """They weigh k3 and let the gradient into the weight: another value, the same gradient."""
    columns.logp.requires_grad_()
    objective = PolicyObjective(kl_coef=0.3, kl_estimator="k3", kl_unbiased=True)
    _, ours = our_update(columns, objective)
    _, theirs = grpo_update(trl, columns, loss_type="dapo", beta=0.3, use_bias_correction_kl=True)
    close(*(torch.autograd.grad(loss, columns.logp)[0] for loss in (ours, theirs)))


def test_entropy_bonus(trl, columns):
    columns.entropy.requires_grad_()
    settings = {"loss_type": "dapo", "entropy_coef": 0.2, "_entropy_bonus_enabled": True}
    same_update(trl, columns, PolicyObjective(entropy_coef=0.2), **settings)
    _, ours = our_update(columns, PolicyObjective(entropy_coef=0.2))
    _, theirs = grpo_update(trl, columns, **settings)
    close_with_gradient(ours, theirs, columns.entropy)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "cispo"])
@pytest.mark.parametrize(("mode", "theirs"), [("clip", "token_truncate"), ("mask", "token_mask")])
@pytest.mark.parametrize("band", [(0.7, 1.5), (0.0, 1.2)])
def test_correction_of_the_mismatch(trl, columns, loss, mode, theirs, band):
    objective = PolicyObjective(
        PolicyLossSettings("cispo", 1.0, 0.2) if loss == "cispo" else PolicyLossSettings(),
        AGGREGATION[loss],
        max_tokens=2 * A,
        correction=CorrectionSettings("token", mode, "ratio", *band),
    )
    same_update(
        trl,
        columns,
        objective,
        loss_type=loss,
        epsilon_high=1.2 if loss == "cispo" else 0.2,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=theirs,
        vllm_importance_sampling_clip_min=band[0],
        vllm_importance_sampling_clip_max=band[1],
    )


def test_advantages_of_grpo(trl, columns):
    """They add 1e-4 to the standard deviation and we 1e-9: neither matters at large scores."""
    columns.scores *= 1e6
    ours_BA, _ = our_update(columns, PolicyObjective(), "group_norm")
    theirs_B, _ = grpo_update(trl, columns, scale_rewards="group")
    close(ours_BA, theirs_B[:, None] * columns.action)


def test_advantages_of_rloo(trl, columns):
    ours_BA, _ = advantages(columns.scores, GROUP_B, columns.action, None, AdvantageSettings("rloo"))
    close(ours_BA, rloo_advantages(trl, columns)[:, None] * columns.action)
