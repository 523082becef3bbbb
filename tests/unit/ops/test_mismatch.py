"""The correction against a reference in plain Python, unit by unit."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.ops.mismatch import CorrectionSettings, correction

CORRECTIONS = {
    "TIS": CorrectionSettings("token", "clip", "ratio", 0.7, 1.5),
    "IcePop": CorrectionSettings("token", "mask", "ratio", 0.7, 1.5),
    "seq-mask-TIS": CorrectionSettings("seq", "mask", "ratio", 0.9, 1.2),
    "FlashREINFORCE": CorrectionSettings("seq", "mask", "binary_kl", 0.0, 0.02),
    "token binary KL": CorrectionSettings("token", "mask", "binary_kl", 0.0, 0.02),
    "token TV": CorrectionSettings("token", "mask", "tv", 0.0, 0.06),
    "sequence TV": CorrectionSettings("seq", "mask", "tv", 0.0, 0.06),
}


def log_probs(seed):
    draw = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    action_BA = draw[2] > -0.4
    action_BA[0] = False
    old_logp_BA = -(draw[0].abs() + 0.05)
    # What stands off actions must not be read, so it is not cleared.
    return old_logp_BA, (old_logp_BA + 0.3 * draw[1]).clamp(max=-0.01), action_BA


def distance(sampler, trainer, gating):
    p, q = (min(max(math.exp(x), 1e-6), 1 - 1e-6) for x in (sampler, trainer))
    if gating == "tv":
        return abs(p - q)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def slow_row(old_logp, sampler_logp, settings):
    """Weights and rejections of the actions of one row."""
    ratios = [math.exp(old - sampler) for old, sampler in zip(old_logp, sampler_logp, strict=True)]
    if settings.gating == "ratio":
        stats = [statistics.geometric_mean(ratios)] * len(ratios) if settings.level == "seq" else ratios
    else:
        pairs = zip(sampler_logp, old_logp, strict=True)
        stats = [distance(sampler, old, settings.gating) for sampler, old in pairs]
        stats = [statistics.mean(stats)] * len(ratios) if settings.level == "seq" else stats
    out = [not settings.low <= stat <= settings.high for stat in stats]
    if settings.mode == "clip":
        return [min(max(ratio, settings.low), settings.high) for ratio in ratios], out
    return [0.0 if gone else ratio for ratio, gone in zip(ratios, out, strict=True)], out


@pytest.mark.parametrize("name", CORRECTIONS)
@given(seed=st.integers(0, 999))
def test_against_the_slow_reference(name, seed):
    old_logp_BA, sampler_logp_BA, action_BA = log_probs(seed)
    got = correction(old_logp_BA.requires_grad_(), sampler_logp_BA, action_BA, CORRECTIONS[name])
    assert not got.weight_BA.requires_grad
    for b, action_A in enumerate(action_BA):
        if not action_A.any():
            continue
        want, out = slow_row(
            old_logp_BA[b][action_A].tolist(), sampler_logp_BA[b][action_A].tolist(), CORRECTIONS[name]
        )
        assert got.weight_BA[b][action_A].tolist() == pytest.approx(want)
        assert got.filtered_BA[b][action_A].tolist() == out
    assert not got.filtered_BA[~action_BA].any() and got.weight_BA.isfinite().all()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_cases_above_filter_some_and_not_all(name):
    filtered, actions = 0, 0
    for seed in range(10):
        old_logp_BA, sampler_logp_BA, action_BA = log_probs(seed)
        filtered += int(correction(old_logp_BA, sampler_logp_BA, action_BA, CORRECTIONS[name]).filtered_BA.sum())
        actions += int(action_BA.sum())
    assert 0.1 * actions < filtered < 0.9 * actions


@pytest.mark.parametrize("settings", CORRECTIONS.values(), ids=CORRECTIONS)
def test_without_a_mismatch_every_weight_is_one(settings):
    logp_BA, _, action_BA = log_probs(0)
    got = correction(logp_BA, logp_BA, action_BA, settings)
    assert not got.filtered_BA.any() and torch.equal(got.weight_BA, torch.ones_like(logp_BA))


@pytest.mark.parametrize("settings", CORRECTIONS.values(), ids=CORRECTIONS)
def test_a_mismatch_without_measure_stays_finite(settings):
    apart = torch.tensor([[0.0, -900.0]]), torch.tensor([[-900.0, 0.0]])
    got = correction(*apart, torch.ones(1, 2).bool(), settings)
    assert got.weight_BA.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        ("seq", "clip", "ratio", 0.5, 2.0),
        ("token", "clip", "tv", 0.0, 0.1),
        ("token", "mask", "tv", 0.1, 0.2),
        ("token", "mask", "ratio", 2.0, 0.5),
        ("row", "mask", "ratio", 0.5, 2.0),
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(AssertionError):
        CorrectionSettings(*wrong)
