from __future__ import annotations

import math

import pytest
import torch

from openrlhf_ext.ops.kl import KL_ESTIMATORS, adapted_kl_coef, approximate_kl


@pytest.mark.parametrize(
    ("estimator", "formula"),
    [("k1", lambda r: r), ("k2", lambda r: r * r / 2), ("k3", lambda r: math.exp(-r) - 1 + r)],
)
def test_against_the_formula_token_by_token(estimator, formula):
    logp, ref_logp = torch.linspace(-2, 0, 50, dtype=torch.float64), torch.linspace(0, -2, 50, dtype=torch.float64)
    want = [formula(p - q) for p, q in zip(logp.tolist(), ref_logp.tolist(), strict=True)]
    torch.testing.assert_close(approximate_kl(logp, ref_logp, estimator), torch.tensor(want, dtype=torch.float64))


def categorical():
    theta = torch.tensor([0.3, -0.8, 0.1, 1.2], dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax(theta, 0)
    ref_logp = torch.log_softmax(torch.tensor([0.5, 0.0, -0.4, 0.9], dtype=torch.float64), 0)
    return theta, logp, ref_logp, (logp.exp() * (logp - ref_logp)).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    _, logp, ref_logp, kl = categorical()
    torch.testing.assert_close((logp.exp() * approximate_kl(logp, ref_logp, estimator)).sum(), kl)


def test_the_expected_gradient_of_k2_is_that_of_the_kl_and_of_k1_is_zero():
    """As a loss on sampled tokens: the expectation is over samples, which carry no gradient."""
    theta, logp, ref_logp, kl = categorical()
    (want,) = torch.autograd.grad(kl, theta, retain_graph=True)
    p = logp.exp().detach()
    (k2,) = torch.autograd.grad((p * approximate_kl(logp, ref_logp, "k2")).sum(), theta, retain_graph=True)
    (k1,) = torch.autograd.grad((p * approximate_kl(logp, ref_logp, "k1")).sum(), theta)
    torch.testing.assert_close(k2, want)
    torch.testing.assert_close(k1, torch.zeros_like(k1))


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_zero_at_equality_and_bounded_with_a_finite_gradient(estimator):
    logp = torch.tensor([-1.0, -500.0, 0.0], requires_grad=True)
    kl = approximate_kl(logp, torch.tensor([-1.0, 0.0, -500.0]), estimator)
    assert kl[0] == 0 and kl.abs().max() <= 10
    kl.sum().backward()
    assert torch.isfinite(logp.grad).all()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_never_negative(estimator):
    assert (approximate_kl(torch.linspace(-3, 0, 101), torch.full((101,), -1.5), estimator) >= 0).all()


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("sampled_from", ["policy", "older policy"])
def test_the_unbiased_gradient_is_that_of_the_kl_whoever_sampled(estimator, sampled_from):
    theta, logp, ref_logp, kl = categorical()
    (want,) = torch.autograd.grad(kl, theta, retain_graph=True)
    old_logp = None
    if sampled_from == "older policy":
        old_logp = torch.log_softmax(torch.tensor([0.1, -0.5, 0.4, 1.0], dtype=torch.float64), 0)
    got = approximate_kl(logp, ref_logp, estimator, unbiased=True, old_logp=old_logp)
    torch.testing.assert_close(got, approximate_kl(logp, ref_logp, estimator))
    samples = (logp.detach() if old_logp is None else old_logp).exp()
    torch.testing.assert_close(torch.autograd.grad((samples * got).sum(), theta)[0], want)


def test_the_weight_of_the_unbiased_gradient_is_bounded():
    logp = torch.tensor([-1.0], requires_grad=True)
    kl = approximate_kl(logp, torch.tensor([-3.0]), unbiased=True, old_logp=torch.tensor([-9.0]))
    (grad,) = torch.autograd.grad(kl.sum(), logp)
    torch.testing.assert_close(grad, torch.tensor([10.0 * 2.0]))


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98)])
def test_the_coefficient_follows_the_kl_by_bounded_steps(kl, factor):
    assert adapted_kl_coef(0.2, kl, target=6.0, horizon=1000, samples=100) == pytest.approx(0.2 * factor)
