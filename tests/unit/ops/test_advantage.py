"""Advantages against a reference in plain Python, and the properties each estimator is known for."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.ops.advantage import ESTIMATORS, AdvantageSettings, advantages

A = 6
GROUP_BASED = ["reinforce_baseline", "rloo", "group_norm", "dr_grpo"]
WHITENED = ["gae", "reinforce", "reinforce_baseline"]


@st.composite
def batches(draw, smallest_group=1):
    """Groups of unequal sizes in any order, masks with gaps, now and then a row without actions."""
    sizes = draw(st.lists(st.integers(smallest_group, 4), min_size=1, max_size=4))
    group = draw(st.permutations([7 * g + 3 for g, size in enumerate(sizes) for _ in range(size)]))
    n = len(group)
    scores = draw(st.lists(st.integers(-20, 20).map(lambda x: x / 8), min_size=n, max_size=n))
    action = draw(st.lists(st.lists(st.booleans(), min_size=A, max_size=A), min_size=n, max_size=n))
    sixteenths = st.lists(st.lists(st.integers(-8, 8), min_size=A, max_size=A), min_size=n, max_size=n)
    kl, values = (torch.tensor(draw(sixteenths)).double() / 16 for _ in range(2))
    return torch.tensor(scores).double(), torch.tensor(group), torch.tensor(action), kl, values


def run(batch, settings):
    return advantages(*batch[:4], settings, batch[4])


def shaped(estimator, scores, group, b):
    siblings = [s for s, g in zip(scores, group, strict=True) if g == group[b]]
    others = [s for i, s in enumerate(scores) if group[i] == group[b] and i != b]
    if estimator in ("reinforce", "gae"):
        return scores[b]
    if estimator == "flash_reinforce":
        return scores[b] - statistics.mean(scores)
    if not others:
        return 0.0
    if estimator == "rloo":
        return scores[b] - statistics.mean(others)
    centred = scores[b] - statistics.mean(siblings)
    return centred / (statistics.stdev(siblings) + 1e-9) if estimator == "group_norm" else centred


def slow_gae(rewards, values, gamma, lambd):
    """The definition: a geometrically weighted sum of one-step errors, over the actions of one row."""
    padded = [*values, 0.0]
    errors = [rewards[i] + gamma * padded[i + 1] - padded[i] for i in range(len(rewards))]
    return [sum((gamma * lambd) ** (j - i) * errors[j] for j in range(i, len(rewards))) for i in range(len(rewards))]


def slow_reference(scores_B, group_B, action_BA, kl_BA, values_BA, settings):
    scores, group, action, kl = scores_B.tolist(), group_B.tolist(), action_BA.tolist(), kl_BA.tolist()
    raw, returns = torch.zeros(2, len(scores), A, dtype=torch.float64)
    for b in range(len(scores)):
        score = shaped(settings.estimator, scores, group, b)
        if settings.reward_clip:
            score = min(max(score, settings.reward_clip[0]), settings.reward_clip[1])
        actions = [a for a in range(A) if action[b][a]]
        rewards = [-settings.kl_coef * kl[b][a] + (score if a == actions[-1] else 0.0) for a in actions]
        if settings.estimator == "gae" and actions:
            values = values_BA[b][action_BA[b]]
            raw[b, actions] = values.new_tensor(slow_gae(rewards, values.tolist(), settings.gamma, settings.lambd))
            returns[b, actions] = raw[b, actions] + values
        else:
            for a in actions:
                later = zip(actions, rewards, strict=True)
                raw[b, a] = returns[b, a] = sum(settings.gamma ** (x - a) * r for x, r in later if x >= a)
    flat = raw[action_BA].tolist()
    norm = settings.norm
    if norm == "auto":
        norm = "none" if settings.estimator not in WHITENED else "std" if settings.std_norm else "mean"
    if norm != "none" and flat:
        std = max(statistics.pvariance(flat), 1e-8) ** 0.5 if norm == "std" else 1.0
        raw[action_BA] = torch.tensor([(x - statistics.mean(flat)) / std for x in flat], dtype=torch.float64)
    return raw, returns


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(
    batch=batches(),
    kl_coef=st.sampled_from([0.0, 0.3]),
    clip=st.sampled_from([None, (-1.0, 0.5)]),
    norm=st.sampled_from([{}, {"std_norm": False}, {"norm": "none"}, {"norm": "mean"}, {"norm": "std"}]),
)
def test_against_the_slow_reference(estimator, batch, kl_coef, clip, norm):
    gamma = 0.9 if ESTIMATORS[estimator].discounted else 1.0
    lambd = 0.8 if ESTIMATORS[estimator].needs_values else 1.0
    settings = AdvantageSettings(estimator, gamma=gamma, kl_coef=kl_coef, reward_clip=clip, lambd=lambd, **norm)
    got, want = run(batch, settings), slow_reference(*batch, settings)
    torch.testing.assert_close(got[0], want[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(got[1], want[1], atol=1e-9, rtol=1e-9)
    assert not got[0][~batch[2]].any() and not got[1][~batch[2]].any()


@given(batch=batches(), kl_coef=st.sampled_from([0.0, 0.3]))
def test_gae_with_lambda_one_is_return_minus_value(batch, kl_coef):
    settings = AdvantageSettings("gae", kl_coef=kl_coef, norm="none")
    got_BA, returns_BA = run(batch, settings)
    _, plain_BA = run(batch, AdvantageSettings("reinforce", kl_coef=kl_coef))
    torch.testing.assert_close(returns_BA, plain_BA)
    torch.testing.assert_close(got_BA, (plain_BA - batch[4]).where(batch[2], 0.0))


@given(batch=batches())
def test_gae_does_not_see_what_stands_between_actions(batch):
    """Neither the values there nor how long it is: the same actions side by side have the same advantages."""
    scores_B, group_B, action_BA, _, values_BA = batch
    settings = AdvantageSettings("gae", gamma=0.9, lambd=0.7, norm="none")
    order_BA = (~action_BA).long().argsort(dim=1, stable=True)  # the actions first, in their order
    together = scores_B, group_B, action_BA.gather(1, order_BA), None, values_BA.gather(1, order_BA)
    got_BA, returns_BA = run((scores_B, group_B, action_BA, None, values_BA), settings)
    moved_BA, moved_returns_BA = run(together, settings)
    torch.testing.assert_close(got_BA.gather(1, order_BA), moved_BA)
    torch.testing.assert_close(returns_BA.gather(1, order_BA), moved_returns_BA)


@pytest.mark.parametrize("estimator", GROUP_BASED)
@given(batch=batches(smallest_group=2))
def test_advantages_of_a_group_sum_to_zero(estimator, batch):
    scores_B, group_B, action_BA = batch[:3]
    everywhere_BA = torch.ones_like(action_BA)
    got_BA, _ = advantages(scores_B, group_B, everywhere_BA, None, AdvantageSettings(estimator, norm="none"))
    for g in group_B.unique():
        assert got_BA[group_B == g].sum(0).abs().max() < 1e-9


@pytest.mark.parametrize("estimator", GROUP_BASED)
@given(batch=batches(), shift=st.integers(-9, 9))
def test_a_constant_added_to_a_group_changes_nothing(estimator, batch, shift):
    scores_B, group_B = batch[:2]
    moved_B = scores_B + shift * (group_B == group_B[0])
    settings = AdvantageSettings(estimator)
    for one, other in zip(run(batch, settings), run((moved_B, *batch[1:]), settings), strict=True):
        torch.testing.assert_close(one, other)


@given(batch=batches())
def test_advantages_of_a_batch_sum_to_zero_under_flash_reinforce(batch):
    scores_B, group_B, action_BA = batch[:3]
    everywhere_BA = torch.ones_like(action_BA)
    got_BA, _ = advantages(scores_B, group_B, everywhere_BA, None, AdvantageSettings("flash_reinforce"))
    assert got_BA.sum(0).abs().max() < 1e-9


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(batch=batches(), seed=st.integers(0, 99))
def test_the_order_of_the_rows_does_not_matter(estimator, batch, seed):
    order = torch.randperm(len(batch[0]), generator=torch.Generator().manual_seed(seed))
    settings = AdvantageSettings(estimator, kl_coef=0.1)
    straight, permuted = run(batch, settings)[0], run([x[order] for x in batch], settings)[0]
    torch.testing.assert_close(straight[order], permuted)


@pytest.mark.parametrize("estimator", WHITENED)
def test_normalised_advantages_have_mean_zero_and_variance_one_over_actions(estimator):
    torch.manual_seed(0)
    action_BA = torch.rand(32, 20) < 0.7
    batch = torch.randn(32), torch.arange(32) // 4, action_BA, torch.rand(32, 20), torch.randn(32, 20)
    got_BA, _ = run(batch, AdvantageSettings(estimator, kl_coef=0.1))
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"estimator": "rloo", "gamma": 0.9},
        {"estimator": "reinforce", "lambd": 0.9},
        {"kl_coef": -1.0},
        {"gamma": 1.1},
        {"norm": "std", "std_norm": False},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(AssertionError):
        AdvantageSettings(**wrong)


def test_gae_without_values_is_refused():
    with pytest.raises(AssertionError, match="critic"):
        advantages(torch.ones(1), torch.zeros(1).long(), torch.ones(1, 2).bool(), None, AdvantageSettings("gae"))


def test_every_estimator_names_its_source():
    assert all("arXiv:" in estimator.paper or "github.com/" in estimator.paper for estimator in ESTIMATORS.values())


@st.composite
def games(draw):
    """Batches whose rows have roles, and parts of their scores at some of their actions."""
    batch = draw(batches())
    rows = len(batch[0])
    roles = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)))
    eighths = st.lists(st.lists(st.integers(-6, 6), min_size=A, max_size=A), min_size=rows, max_size=rows)
    turns = (torch.tensor(draw(eighths)).double() / 8).where(batch[2], 0.0)
    return batch, turns, roles


@given(game=games())
def test_the_first_actions_return_is_the_score_wherever_its_parts_fell(game):
    (scores_B, group_B, action_BA, *_), turns_BA, role_B = game
    settings = AdvantageSettings("reinforce", norm="none")
    got_BA, _ = advantages(scores_B, group_B, action_BA, None, settings, turns_BA=turns_BA, role_B=role_B)
    for b, actions in enumerate(action_BA):
        places = actions.nonzero().flatten().tolist()
        for place in places:
            earlier = turns_BA[b, :place].sum()
            torch.testing.assert_close(got_BA[b, place], scores_B[b] - earlier)


@given(game=games(), clip=st.sampled_from([(-1.0, 0.5), (0.0, 1.0), (0.25, 2.0)]))
def test_clipping_bounds_the_sum_and_shrinks_the_turns_alike(game, clip):
    (scores_B, group_B, action_BA, *_), turns_BA, _ = game
    settings = AdvantageSettings("reinforce", norm="none", reward_clip=clip)
    got_BA, _ = advantages(scores_B, group_B, action_BA, None, settings, turns_BA=turns_BA)
    for b, actions in enumerate(action_BA):
        places, score = actions.nonzero().flatten().tolist(), float(scores_B[b])
        if not places:
            continue
        total = min(max(score, clip[0]), clip[1])
        assert float(got_BA[b, places[0]]) == pytest.approx(total)
        share = 1.0 if total == score else 0.0 if score * total < 0 else min(total / score, 1.0) if score else 1.0
        rewards = (got_BA[b, places] - torch.cat([got_BA[b, places[1:]], torch.zeros(1)])).tolist()
        assert rewards[:-1] == pytest.approx((share * turns_BA[b, places[:-1]]).tolist(), abs=1e-9)


@given(game=games())
def test_gae_takes_the_parts_where_they_fell(game):
    (scores_B, group_B, action_BA, _, values_BA), turns_BA, _ = game
    settings = AdvantageSettings("gae", gamma=0.9, lambd=0.7, norm="none")
    got_BA, _ = advantages(scores_B, group_B, action_BA, None, settings, values_BA, turns_BA=turns_BA)
    for b, actions in enumerate(action_BA):
        places = actions.nonzero().flatten().tolist()
        if not places:
            continue
        rewards = turns_BA[b, places]
        rewards[-1] += scores_B[b] - rewards.sum()
        expected = slow_gae(rewards.tolist(), values_BA[b, places].tolist(), 0.9, 0.7)
        assert got_BA[b, places].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if not ESTIMATORS[name].discounted])
@given(game=games())
def test_an_estimator_without_time_sees_the_score_alone(estimator, game):
    (scores_B, group_B, action_BA, *_), turns_BA, _ = game
    settings = AdvantageSettings(estimator)
    with_turns, without = (
        advantages(scores_B, group_B, action_BA, None, settings, turns_BA=turns) for turns in (turns_BA, None)
    )
    assert torch.equal(with_turns[0], without[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(game=games())
def test_a_role_has_the_advantages_that_it_would_have_alone(estimator, game):
    batch, turns_BA, role_B = game
    settings = AdvantageSettings(estimator, kl_coef=0.1, reward_clip=(-2.0, 2.0))
    got = advantages(*batch[:4], settings, batch[4], turns_BA=turns_BA, role_B=role_B)
    for role in role_B.unique():
        own_B = role_B == role
        own = [tensor[own_B] for tensor in batch]
        alone = advantages(*own[:4], settings, own[4], turns_BA=turns_BA[own_B])
        for ours, theirs in zip(got, alone, strict=True):
            torch.testing.assert_close(ours[own_B], theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(batch=batches())
def test_one_role_and_no_turns_change_no_bit(estimator, batch):
    nothing_BA, one_B = torch.zeros(batch[2].shape), torch.zeros(len(batch[0]), dtype=torch.long)
    plain = run(batch, AdvantageSettings(estimator))
    named = advantages(*batch[:4], AdvantageSettings(estimator), batch[4], turns_BA=nothing_BA, role_B=one_B)
    assert torch.equal(plain[0], named[0])
    assert torch.equal(plain[1], named[1])


def test_a_turns_reward_off_an_action_is_our_mistake():
    action_BA = torch.tensor([[True, False, True]])
    with pytest.raises(AssertionError, match="given to an action"):
        advantages(
            torch.ones(1), torch.zeros(1).long(), action_BA, None, AdvantageSettings(), turns_BA=torch.ones(1, 3)
        )
