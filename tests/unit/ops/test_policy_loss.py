from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.ops.policy_loss import POLICY_LOSSES, PolicyLossSettings, policy_loss, policy_report
from openrlhf_ext.types import merge_reports

SURROGATES = ["ppo", "gspo"]
SETTINGS = st.builds(
    PolicyLossSettings,
    kind=st.sampled_from(SURROGATES),
    clip_low=st.sampled_from([0.1, 0.2]),
    clip_high=st.sampled_from([0.2, 0.3]),
    dual_clip=st.sampled_from([None, 1.5, 3.0]),
)
CISPO = st.builds(PolicyLossSettings, kind=st.just("cispo"), clip_low=st.sampled_from([0.2, 1.0]))


def tokens(seed: int, spread: float = 0.5):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, 3, 8, generator=generator, dtype=torch.float64)
    action_BA = draw[3] > -0.5
    logp_BA, old_logp_BA, advantages_BA = (x * action_BA for x in (draw[0] * spread - 1, draw[1] * spread - 1, draw[2]))
    return logp_BA.requires_grad_(), old_logp_BA, advantages_BA, action_BA


def one_token(ratio, advantage, settings):
    gain = min(ratio * advantage, min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high) * advantage)
    if settings.dual_clip and advantage < 0:
        gain = max(gain, settings.dual_clip * advantage)
    return -gain


def row_mean(values_A, action_A):
    """The mean over a row's actions, at each of them."""
    return torch.where(action_A, values_A[action_A].mean() if action_A.any() else 0.0, 0.0)


@given(st.integers(0, 999), SETTINGS)
def test_surrogates_token_by_token(seed, settings):
    logp_BA, old_logp_BA, advantages_BA, action_BA = tokens(seed)
    got = policy_loss(logp_BA, old_logp_BA, advantages_BA, action_BA, settings)
    for b, a in action_BA.nonzero().tolist():
        positions = [a] if settings.kind == "ppo" else action_BA[b].nonzero().flatten().tolist()
        ratio = math.exp(sum((logp_BA[b, i] - old_logp_BA[b, i]).item() for i in positions) / len(positions))
        assert got.ratio_BA[b, a].item() == pytest.approx(ratio)
        want = one_token(ratio, advantages_BA[b, a].item(), settings)
        assert got.loss_BA[b, a].item() == pytest.approx(want, abs=1e-12)


@given(st.integers(0, 999), SETTINGS)
def test_clipped_tokens_and_no_others_have_a_zero_gradient(seed, settings):
    """Under gspo the tokens of a sequence share their ratio, and here as usual their advantage: all or none."""
    logp_BA, old_logp_BA, advantages_BA, action_BA = tokens(seed)
    if settings.kind == "gspo":
        advantages_BA = torch.stack([row_mean(*row) for row in zip(advantages_BA, action_BA, strict=True)])
    got = policy_loss(logp_BA, old_logp_BA, advantages_BA, action_BA, settings)
    (grad_BA,) = torch.autograd.grad(got.loss_BA.where(action_BA, 0.0).sum(), logp_BA)
    assert torch.equal((grad_BA == 0) & action_BA, got.clipped_BA)
    free_BA = action_BA & ~got.clipped_BA
    torch.testing.assert_close(grad_BA[free_BA], (-got.ratio_BA * advantages_BA)[free_BA])


@given(st.integers(0, 999), CISPO)
def test_cispo_keeps_every_gradient_and_bounds_its_weight(seed, settings):
    logp_BA, old_logp_BA, advantages_BA, action_BA = tokens(seed)
    got = policy_loss(logp_BA, old_logp_BA, advantages_BA, action_BA, settings)
    weight_BA = (logp_BA - old_logp_BA).detach().exp().clamp(1 - settings.clip_low, 1 + settings.clip_high)
    (grad_BA,) = torch.autograd.grad(got.loss_BA.sum(), logp_BA)
    torch.testing.assert_close(grad_BA, -weight_BA * advantages_BA)
    torch.testing.assert_close(got.loss_BA, -weight_BA * advantages_BA * logp_BA)
    assert torch.equal(got.clipped_BA, action_BA & (weight_BA != got.ratio_BA))
    assert settings.clip_low < 1.0 or not (got.clipped_BA & (got.ratio_BA < 1)).any()


@pytest.mark.parametrize("kind", POLICY_LOSSES)
@given(seed=st.integers(0, 999))
def test_on_policy_the_gradient_is_reinforce(kind, seed):
    logp_BA, _, advantages_BA, action_BA = tokens(seed)
    got = policy_loss(logp_BA, logp_BA.detach(), advantages_BA, action_BA, PolicyLossSettings(kind))
    (grad_BA,) = torch.autograd.grad(got.loss_BA.where(action_BA, 0.0).sum(), logp_BA)
    if kind == "gspo":
        advantages_BA = torch.stack([row_mean(*row) for row in zip(advantages_BA, action_BA, strict=True)])
    torch.testing.assert_close(grad_BA, -advantages_BA)
    assert not got.clipped_BA.any()


@pytest.mark.parametrize("kind", POLICY_LOSSES)
def test_a_token_far_off_policy_stays_finite(kind):
    logp_BA = torch.tensor([[0.0], [-900.0]], requires_grad=True)
    old_logp_BA = torch.tensor([[-900.0], [0.0]])
    got = policy_loss(logp_BA, old_logp_BA, -torch.ones(2, 1), torch.ones(2, 1).bool(), PolicyLossSettings(kind))
    got.loss_BA.sum().backward()
    assert torch.isfinite(got.loss_BA).all() and torch.isfinite(logp_BA.grad).all()


@given(st.integers(0, 999), SETTINGS | CISPO)
def test_reports_of_parts_merge_to_the_report_of_the_whole(seed, settings):
    whole = tokens(seed)

    def report(part):
        return policy_report(policy_loss(*part, settings), part[0], part[1], part[3])

    merged = merge_reports(report([x[b : b + 1] for x in whole]) for b in range(3))
    expected = report(whole)
    assert merged.keys() == expected.keys()
    for name, metric in expected.items():
        assert merged[name].value == pytest.approx(metric.value)
        assert merged[name].weight == metric.weight == whole[3].sum()
    logp_BA, old_logp_BA, _, action_BA = whole
    gap_N = (logp_BA - old_logp_BA).detach()[action_BA]
    assert expected["policy_kl"].value == pytest.approx(-gap_N.mean().item())
    if settings.kind != "gspo":
        assert expected["ratio"].value == pytest.approx(gap_N.exp().mean().item())
        assert expected["ratio_min"].value == pytest.approx(gap_N.exp().min().item())
        assert expected["ratio_max"].value == pytest.approx(gap_N.exp().max().item())


@pytest.mark.parametrize("width", [0, 1])
def test_a_dummy_reports_nothing(width):
    nothing = torch.zeros(1, width), torch.zeros(1, width), torch.zeros(1, width), torch.zeros(1, width).bool()
    assert policy_report(policy_loss(*nothing, PolicyLossSettings()), nothing[0], nothing[1], nothing[3]) == {}


@pytest.mark.parametrize(
    "wrong", [{"dual_clip": 1.0}, {"clip_low": -0.1}, {"kind": "trpo"}, {"kind": "cispo", "dual_clip": 2.0}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(AssertionError):
        PolicyLossSettings(**wrong)
