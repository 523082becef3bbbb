"""Our KL, estimators, log-probs and PPO loss against openrlhf 0.11.2's on the same tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from openrlhf_ext.batch.split import denominators
from openrlhf_ext.ops.advantage import ESTIMATORS, AdvantageSettings, advantages
from openrlhf_ext.ops.aggregate import aggregate
from openrlhf_ext.ops.kl import KL_ESTIMATORS, approximate_kl
from openrlhf_ext.ops.logprobs import chunked_logprobs
from openrlhf_ext.ops.policy_loss import PolicyLossSettings, policy_loss, policy_report

GROUP, GROUPS, A = 4, 3, 10
B = GROUP * GROUPS


def float64(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def columns():
    """Masks with gaps, ends at different lengths, log-probs and advantages that are zero off actions."""
    generator = torch.Generator().manual_seed(5)
    length_B = torch.randint(2, A + 1, (B,), generator=generator)
    action_BA = (torch.arange(A) < length_B[:, None]) & (torch.rand(B, A, generator=generator) < 0.8)
    action_BA[torch.arange(B), length_B - 1] = True
    names = ["logp", "old_logp", "ref_logp"]
    drawn = {name: (0.4 * float64(generator, B, A) - 2) * action_BA for name in names}
    drawn["advantages"] = float64(generator, B, A) * action_BA
    return SimpleNamespace(**drawn, action=action_BA, scores=2 * float64(generator, B), length=length_B)


def close(got, want, tolerance=1e-6):
    torch.testing.assert_close(got.double(), want.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl(openrlhf, columns, estimator):
    """Theirs is taken in float32 whatever comes in; the values far apart exercise the bounds."""
    for scale in (1.0, 40.0):
        logp = (scale * columns.logp).requires_grad_()
        ours = approximate_kl(logp, scale * columns.ref_logp, estimator)
        theirs = openrlhf.ops.compute_approx_kl(logp, scale * columns.ref_logp, kl_estimator=estimator)
        close(ours, theirs, 1e-5)
        (our_grad,) = torch.autograd.grad(ours.sum(), logp)
        (their_grad,) = torch.autograd.grad(theirs.sum(), logp)
        close(our_grad, their_grad, 1e-5)


def their_advantages(openrlhf, columns, kl_BA, settings):
    """Their whole step, on micro-batches in another order than the prompts, each with its own width."""
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    experiences = []
    for rows in order.split(5):
        width = int(columns.length[rows].max())
        experiences.append(
            openrlhf.Experience(
                index=rows.tolist(),
                rewards=columns.scores[rows],
                action_mask=columns.action[rows, :width],
                kl=kl_BA[rows, :width],
            )
        )
    maker = openrlhf.maker.RemoteExperienceMaker.__new__(openrlhf.maker.RemoteExperienceMaker)
    maker.kl_ctl = SimpleNamespace(value=settings.kl_coef)
    maker.advantage_estimator = settings.estimator
    advantage = SimpleNamespace(estimator=settings.estimator, gamma=settings.gamma, no_std_norm=not settings.std_norm)
    maker.strategy = SimpleNamespace(
        args=SimpleNamespace(
            algo=SimpleNamespace(advantage=advantage),
            rollout=SimpleNamespace(n_samples_per_prompt=GROUP),
            reward=SimpleNamespace(clip_range=settings.reward_clip),
        )
    )
    advantages_BA, returns_BA = torch.zeros(B, A).double(), torch.zeros(B, A).double()
    for experience in maker.compute_advantages_and_returns(experiences):
        rows, width = torch.tensor(experience.index), experience.advantages.shape[1]
        advantages_BA[rows, :width] = experience.advantages
        returns_BA[rows, :width] = experience.returns
    return advantages_BA * columns.action, returns_BA * columns.action


@pytest.mark.parametrize("std_norm", [True, False])
@pytest.mark.parametrize("clip", [None, (-0.5, 1.0)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
@pytest.mark.parametrize(
    ("estimator", "gamma"), [*((name, 1.0) for name in ESTIMATORS if name != "gae"), ("reinforce", 0.95)]
)
def test_advantages(openrlhf, columns, estimator, gamma, kl_coef, clip, std_norm):
    settings = AdvantageSettings(estimator, gamma, kl_coef, clip, std_norm)
    kl_BA = approximate_kl(columns.logp, columns.ref_logp)
    group_B = torch.arange(B) // GROUP
    ours = advantages(columns.scores, group_B, columns.action, kl_BA, settings)
    theirs = their_advantages(openrlhf, columns, kl_BA, settings)
    close(ours[0], theirs[0])
    close(ours[1], theirs[1])


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, None), (0.1, 0.3, None), (0.2, 0.28, 1.5)])
def test_ppo_loss(openrlhf, columns, low, high, dual, mode):
    logp_BA = columns.logp.requires_grad_()
    reference = openrlhf.loss.PolicyLoss(low, high, dual, token_level_loss=mode == "token-mean")
    totals = denominators(columns.action)
    # Half of the batch with the denominators of the whole: what one rank of two computes.
    half = slice(0, B // 2)
    theirs, clip_ratio, ppo_kl, _, _ = reference(
        logp_BA[half],
        columns.old_logp[half],
        columns.advantages[half],
        columns.action[half],
        batch_num_tokens=totals.tokens,
        global_batch_size=totals.sequences,
    )
    part = (logp_BA[half], columns.old_logp[half], columns.advantages[half], columns.action[half])
    tokens = policy_loss(*part, PolicyLossSettings("ppo", low, high, dual))
    ours = aggregate(tokens.loss_BA, part[3], totals, mode)
    close(ours, theirs)
    close(torch.autograd.grad(ours, logp_BA)[0], torch.autograd.grad(theirs, logp_BA)[0])
    report = policy_report(tokens, part[0], part[1], part[3])
    assert report["policy_kl"].value == pytest.approx(ppo_kl.item())
    if dual is None:  # theirs leaves the tokens that the dual clip stops out of the fraction
        assert report["clip_fraction"].value == pytest.approx(clip_ratio.item())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_tokens(openrlhf, temperature):
    generator = torch.Generator().manual_seed(2)
    hidden_NH, weight_VH = float64(generator, 20, 4), float64(generator, 30, 4)
    targets_N = torch.randint(30, (20,), generator=generator)
    ours, _ = chunked_logprobs(hidden_NH, lambda h: h @ weight_VH.T, targets_N, chunk=7, temperature=temperature)
    close(ours, openrlhf.ops.log_probs_from_logits(hidden_NH @ weight_VH.T, targets_N, temperature))
