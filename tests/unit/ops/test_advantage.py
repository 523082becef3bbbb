"""Advantages against a reference in plain Python, and the properties each estimator is known for."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.ops.advantage import ESTIMATORS, AdvantageSettings, advantages

A = 6
GROUP_BASED = ["reinforce_baseline", "rloo", "group_norm"]


@st.composite
def batches(draw, smallest_group=1):
    """Groups of unequal sizes in any order, masks with gaps, now and then a row without actions."""
    sizes = draw(st.lists(st.integers(smallest_group, 4), min_size=1, max_size=4))
    group = draw(st.permutations([7 * g + 3 for g, size in enumerate(sizes) for _ in range(size)]))
    n = len(group)
    scores = draw(st.lists(st.integers(-20, 20).map(lambda x: x / 8), min_size=n, max_size=n))
    action = draw(st.lists(st.lists(st.booleans(), min_size=A, max_size=A), min_size=n, max_size=n))
    kl = draw(st.lists(st.lists(st.integers(-8, 8), min_size=A, max_size=A), min_size=n, max_size=n))
    return torch.tensor(scores).double(), torch.tensor(group), torch.tensor(action), torch.tensor(kl).double() / 16


def shaped(estimator, scores, group, b):
    siblings = [s for s, g in zip(scores, group, strict=True) if g == group[b]]
    others = [s for i, s in enumerate(scores) if group[i] == group[b] and i != b]
    if estimator == "reinforce":
        return scores[b]
    if not others:
        return 0.0
    if estimator == "rloo":
        return scores[b] - statistics.mean(others)
    centred = scores[b] - statistics.mean(siblings)
    return centred / (statistics.stdev(siblings) + 1e-9) if estimator == "group_norm" else centred


def slow_reference(scores_B, group_B, action_BA, kl_BA, settings):
    scores, group, action, kl = scores_B.tolist(), group_B.tolist(), action_BA.tolist(), kl_BA.tolist()
    returns = [[0.0] * A for _ in scores]
    for b in range(len(scores)):
        score = shaped(settings.estimator, scores, group, b)
        if settings.reward_clip:
            score = min(max(score, settings.reward_clip[0]), settings.reward_clip[1])
        actions = [a for a in range(A) if action[b][a]]
        for a in actions:
            rewards = {x: -settings.kl_coef * kl[b][x] + (score if x == actions[-1] else 0.0) for x in actions}
            returns[b][a] = sum(settings.gamma ** (x - a) * r for x, r in rewards.items() if x >= a)
    result_BA, returns_BA = torch.tensor(returns, dtype=torch.float64), torch.tensor(returns, dtype=torch.float64)
    flat = [returns[b][a] for b in range(len(scores)) for a in range(A) if action[b][a]]
    if settings.estimator in ("reinforce", "reinforce_baseline") and flat:
        std = max(statistics.pvariance(flat), 1e-8) ** 0.5 if settings.std_norm else 1.0
        result_BA[action_BA] = torch.tensor([(x - statistics.mean(flat)) / std for x in flat], dtype=torch.float64)
    return result_BA, returns_BA


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(
    batch=batches(), kl_coef=st.sampled_from([0.0, 0.3]), clip=st.sampled_from([None, (-1.0, 0.5)]), std=st.booleans()
)
def test_against_the_slow_reference(estimator, batch, kl_coef, clip, std):
    gamma = 0.9 if estimator == "reinforce" else 1.0
    settings = AdvantageSettings(estimator, gamma=gamma, kl_coef=kl_coef, reward_clip=clip, std_norm=std)
    got, want = advantages(*batch, settings), slow_reference(*batch, settings)
    torch.testing.assert_close(got[0], want[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(got[1], want[1], atol=1e-9, rtol=1e-9)
    assert not got[0][~batch[2]].any() and not got[1][~batch[2]].any()


@pytest.mark.parametrize("estimator", GROUP_BASED)
@given(batch=batches(smallest_group=2))
def test_shaped_scores_of_a_group_sum_to_zero(estimator, batch):
    scores_B, group_B, _, _ = batch
    shaped_B = ESTIMATORS[estimator].shape(scores_B, group_B)
    for g in group_B.unique():
        assert abs(shaped_B[group_B == g].sum().item()) < 1e-9


@pytest.mark.parametrize("estimator", GROUP_BASED)
@given(batch=batches(), shift=st.integers(-9, 9))
def test_a_constant_added_to_a_group_changes_nothing(estimator, batch, shift):
    scores_B, group_B, action_BA, kl_BA = batch
    moved_B = scores_B + shift * (group_B == group_B[0])
    for one, other in zip(
        advantages(scores_B, group_B, action_BA, kl_BA, AdvantageSettings(estimator)),
        advantages(moved_B, group_B, action_BA, kl_BA, AdvantageSettings(estimator)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(batch=batches(), seed=st.integers(0, 99))
def test_the_order_of_the_rows_does_not_matter(estimator, batch, seed):
    order = torch.randperm(len(batch[0]), generator=torch.Generator().manual_seed(seed))
    settings = AdvantageSettings(estimator, kl_coef=0.1)
    straight, permuted = advantages(*batch, settings)[0], advantages(*(x[order] for x in batch), settings)[0]
    torch.testing.assert_close(straight[order], permuted)


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_baseline"])
def test_normalised_advantages_have_mean_zero_and_variance_one_over_actions(estimator):
    torch.manual_seed(0)
    action_BA = torch.rand(32, 20) < 0.7
    settings = AdvantageSettings(estimator, kl_coef=0.1)
    got_BA, _ = advantages(torch.randn(32), torch.arange(32) // 4, action_BA, torch.rand(32, 20), settings)
    assert got_BA.dtype == torch.float32
    torch.testing.assert_close(got_BA[action_BA].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(got_BA[action_BA].var(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("score", [0.1, 1 / 3, 0.7, 1e4 + 0.1])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_equal_scores_have_no_advantage_under_group_norm(score, size):
    """Rounding in the mean must not be blown up by the division by a standard deviation near 0."""
    scores_B = torch.full((size,), score)
    settings = AdvantageSettings("group_norm")
    got_BA, _ = advantages(scores_B, torch.zeros(size, dtype=torch.long), torch.ones(size, 2).bool(), None, settings)
    assert got_BA.abs().max() < 1e-2


def test_a_batch_without_any_action_has_no_advantages():
    got_BA, _ = advantages(torch.ones(2), torch.zeros(2).long(), torch.zeros(2, 3).bool(), None, AdvantageSettings())
    assert not got_BA.any()


@pytest.mark.parametrize("wrong", [{"estimator": "rloo", "gamma": 0.9}, {"kl_coef": -1.0}, {"gamma": 1.1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(AssertionError):
        AdvantageSettings(**wrong)


def test_every_estimator_names_its_paper():
    assert all("arXiv:" in estimator.paper for estimator in ESTIMATORS.values())
