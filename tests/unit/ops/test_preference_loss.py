from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.ops.preference_loss import (
    DpoLossSettings,
    PairLogprobs,
    ScoreLossSettings,
    calibration_table,
    dpo_loss,
    expected_calibration_error,
    general_preference,
    mean_over_pairs,
    pair_report,
    score_loss,
    summed_logprobs,
)
from openrlhf_ext.types import merge_reports

P = 12
SEEDS = st.integers(0, 999)
SCORES = st.builds(
    ScoreLossSettings,
    kind=st.sampled_from(["sigmoid", "logexp"]),
    temperature=st.sampled_from([1.0, 0.3, 2.0]),
    centring_coef=st.sampled_from([0.0, 0.01]),
) | st.builds(ScoreLossSettings, kind=st.just("general"), temperature=st.sampled_from([1.0, 0.1]))
DPO = st.builds(
    DpoLossSettings,
    kind=st.sampled_from(["sigmoid", "ipo", "hinge"]),
    beta=st.sampled_from([0.1, 0.5]),
    nll_coef=st.sampled_from([0.0, 0.2]),
    length_normalised=st.booleans(),
) | st.builds(DpoLossSettings, label_smoothing=st.sampled_from([0.1, 0.4]))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(seed: int, settings: ScoreLossSettings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two scores and a margin for each pair."""
    width = 6 if settings.kind == "general" else 1
    both_2PH = drawn(seed, 2, P, width)
    return both_2PH[0].requires_grad_(), both_2PH[1].requires_grad_(), drawn(seed + 1, P).abs()


def logprobs(seed: int) -> tuple[PairLogprobs, PairLogprobs, torch.Tensor, torch.Tensor]:
    """Log-probs of policy and reference, and numbers of tokens."""
    sums_4P = -8 * drawn(seed, 4, P).abs() - 1
    tokens_2P = torch.randint(1, 40, (2, P), generator=torch.Generator().manual_seed(seed))
    policy = PairLogprobs(sums_4P[0].requires_grad_(), sums_4P[1].requires_grad_())
    return policy, PairLogprobs(sums_4P[2], sums_4P[3]), tokens_2P[0], tokens_2P[1]


@given(SEEDS, SCORES, st.booleans())
def test_scores_pair_by_pair(seed, settings, with_margin):
    chosen_PH, rejected_PH, margin_P = scores(seed, settings)
    got = score_loss(chosen_PH, rejected_PH, settings, margin_P if with_margin else None)
    for p in range(P):
        c, r = chosen_PH[p].tolist(), rejected_PH[p].tolist()
        if settings.kind == "general":
            wins = sum(c[k] * r[k + 1] - c[k + 1] * r[k] for k in (0, 2, 4))
        else:
            wins = c[0] - r[0]
            assert (got.chosen_P[p].item(), got.rejected_P[p].item()) == (c[0], r[0])
        shifted = wins - margin_P[p].item() if with_margin else wins
        want = -log_sigmoid(shifted / settings.temperature) + settings.centring_coef * (c[0] + r[0]) ** 2
        assert got.loss_P[p].item() == pytest.approx(want)
        assert got.logit_P[p].item() == pytest.approx(wins / settings.temperature)
    assert (got.chosen_P is None) == (settings.kind == "general")


@given(SEEDS, DPO)
def test_dpo_pair_by_pair(seed, settings):
    policy, reference, chosen_tokens_P, rejected_tokens_P = logprobs(seed)
    got = dpo_loss(policy, reference, chosen_tokens_P, rejected_tokens_P, settings)
    for p in range(P):
        n_c, n_r = chosen_tokens_P[p].item(), rejected_tokens_P[p].item()
        c, r = ((a - b)[p].item() for a, b in zip(policy, reference, strict=True))
        if settings.length_normalised:
            c, r = c / n_c, r / n_r
        x, e = settings.beta * (c - r), settings.label_smoothing
        want = {
            "sigmoid": -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x),
            "ipo": (c - r - 1 / (2 * settings.beta)) ** 2,
            "hinge": max(0.0, 1 - x),
        }[settings.kind]
        want -= settings.nll_coef * policy.chosen_P[p].item() / n_c
        assert got.loss_P[p].item() == pytest.approx(want)
        assert got.logit_P[p].item() == pytest.approx(x)
        assert (got.chosen_P[p].item(), got.rejected_P[p].item()) == pytest.approx(
            (settings.beta * c, settings.beta * r)
        )


@given(SEEDS, DPO, st.integers(1, P - 1))
def test_parts_of_a_step_add_up_to_its_loss_and_its_report(seed, settings, cut):
    """However a step is cut, the loss, its gradient and its metrics are those of the whole step."""
    policy, *rest = logprobs(seed)
    whole = dpo_loss(policy, *rest, settings)
    loss = mean_over_pairs(whole.loss_P, P)
    assert loss.item() == pytest.approx(whole.loss_P.mean().item())

    def of(part: slice):
        reference, chosen_tokens_P, rejected_tokens_P = rest
        some = (PairLogprobs(*(x[part] for x in each)) for each in (policy, reference))
        return dpo_loss(*some, chosen_tokens_P[part], rejected_tokens_P[part], settings)

    parts = [of(slice(0, cut)), of(slice(cut, P)), of(slice(P, P))]
    summed = sum(mean_over_pairs(part.loss_P, P) for part in parts)
    assert summed.item() == pytest.approx(loss.item())
    for got, want in zip(torch.autograd.grad(summed, policy), torch.autograd.grad(loss, policy), strict=True):
        torch.testing.assert_close(got, want)
    merged, report = merge_reports(pair_report(part) for part in parts), pair_report(whole)
    assert merged.keys() == report.keys() >= {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward"}
    for name, metric in report.items():
        assert merged[name].value == pytest.approx(metric.value)
        assert merged[name].weight == metric.weight == P
    assert report["margin"].value == pytest.approx(report["chosen_reward"].value - report["rejected_reward"].value)
    assert report["accuracy"].value == pytest.approx((whole.logit_P > 0).double().mean().item())


@given(SEEDS, SCORES)
def test_the_general_model_is_antisymmetric_and_others_see_differences_only(seed, settings):
    chosen_PH, rejected_PH, _ = scores(seed, settings)
    there = score_loss(chosen_PH, rejected_PH, settings).logit_P
    back = score_loss(rejected_PH, chosen_PH, settings).logit_P
    torch.testing.assert_close(there, -back)
    if settings.kind != "general" and not settings.centring_coef:
        moved = score_loss(chosen_PH + 5.0, rejected_PH + 5.0, settings)
        torch.testing.assert_close(moved.loss_P, score_loss(chosen_PH, rejected_PH, settings).loss_P)


def test_the_general_model_holds_a_preference_that_goes_in_a_circle():
    """Rock, scissors and paper, a third of a turn apart: each beats the next, which no difference of scores can."""
    angle_3 = torch.arange(3) * 2 * math.pi / 3
    hands_32 = torch.stack([angle_3.cos(), angle_3.sin()], dim=1)
    assert (general_preference(hands_32, hands_32.roll(-1, 0)) > 0.8).all()
    assert general_preference(hands_32, hands_32).abs().max() < 1e-7


@given(SEEDS)
def test_centring_pulls_the_scores_of_a_pair_around_zero(seed):
    chosen_PH, rejected_PH, _ = scores(seed, ScoreLossSettings())
    extra_P = score_loss(chosen_PH, rejected_PH, ScoreLossSettings(centring_coef=1.0)).loss_P
    extra = (extra_P - score_loss(chosen_PH, rejected_PH, ScoreLossSettings()).loss_P).sum()
    for gradient_PH in torch.autograd.grad(extra, (chosen_PH, rejected_PH)):
        torch.testing.assert_close(gradient_PH, 2 * (chosen_PH + rejected_PH).detach())


@given(SEEDS, DPO)
def test_the_reference_has_no_gradient_and_the_policy_has(seed, settings):
    policy, reference, *tokens = logprobs(seed)
    reference = PairLogprobs(*(x.requires_grad_() for x in reference))
    loss = dpo_loss(policy, reference, *tokens, settings).loss_P.sum()
    assert torch.autograd.grad(loss, reference, allow_unused=True, retain_graph=True) == (None, None)
    chosen_P, _ = torch.autograd.grad(loss, policy)
    assert chosen_P.any() and (settings.kind == "ipo" or (chosen_P <= 0).all() or settings.label_smoothing)


@pytest.mark.parametrize("settings", [DpoLossSettings(), DpoLossSettings("hinge"), DpoLossSettings("ipo")])
def test_a_policy_that_is_the_reference(settings):
    policy, _, *tokens = logprobs(3)
    got = dpo_loss(policy, policy, *tokens, settings)
    start = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": (1 / (2 * settings.beta)) ** 2}[settings.kind]
    torch.testing.assert_close(got.loss_P, torch.full_like(got.loss_P, start))
    assert pair_report(got)["accuracy"].value == 0.0  # equal is not better


@pytest.mark.parametrize("kind", ["sigmoid", "logexp"])
def test_scores_far_apart_stay_finite(kind):
    chosen_PH = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss_P = score_loss(chosen_PH, -chosen_PH.detach(), ScoreLossSettings(kind)).loss_P
    assert loss_P.tolist() == [0.0, 2e4]
    assert torch.isfinite(torch.autograd.grad(loss_P.sum(), chosen_PH)[0]).all()


def test_log_probs_of_an_answer_are_summed_over_its_own_tokens():
    logp_BA = torch.tensor([[math.nan, -1.0, -2.0], [-3.0, -4.0, math.inf]], requires_grad=True)
    action_BA = torch.tensor([[False, True, True], [False, True, False]])
    logp_B, tokens_B = summed_logprobs(logp_BA, action_BA)
    assert (logp_B.tolist(), tokens_B.tolist()) == ([-3.0, -4.0], [2, 1])
    assert torch.equal(torch.autograd.grad(logp_B.sum(), logp_BA)[0], action_BA.float())


def test_no_pairs_are_no_loss_and_no_report():
    nothing_PH = torch.zeros(0, 1, requires_grad=True)
    got = score_loss(nothing_PH, nothing_PH, ScoreLossSettings())
    loss = mean_over_pairs(got.loss_P, 8)
    assert loss.item() == 0.0 and loss.requires_grad and pair_report(got) == {}
    assert not calibration_table(got.logit_P).any()


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 12))
def test_calibration_against_a_slow_count(logits, cut, bins):
    table_K3 = calibration_table(torch.tensor(logits), bins)
    parts = calibration_table(torch.tensor(logits[:cut]), bins) + calibration_table(torch.tensor(logits[cut:]), bins)
    torch.testing.assert_close(table_K3, parts)
    assert table_K3.dtype == torch.float64
    cells: dict[int, list[tuple[float, bool]]] = {}
    for x in torch.tensor(logits).tolist():
        confidence = 1 / (1 + math.exp(-abs(x)))
        cells.setdefault(min(int((confidence - 0.5) * 2 * bins), bins - 1), []).append((confidence, x > 0))
    want = sum(abs(sum(c for c, _ in cell) - sum(right for _, right in cell)) for cell in cells.values())
    assert expected_calibration_error(table_K3) == pytest.approx(want / len(logits))
    assert 0.0 <= expected_calibration_error(table_K3) <= 1.0


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated():
    log_odds = math.log(0.75 / 0.25)
    honest = torch.tensor([log_odds] * 3 + [-log_odds], dtype=torch.float64)
    assert expected_calibration_error(calibration_table(honest)) == pytest.approx(0.0, abs=1e-9)
    assert expected_calibration_error(calibration_table(10 * honest)) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ScoreLossSettings("general", centring_coef=0.1),
        lambda: DpoLossSettings("ipo", label_smoothing=0.1),
        lambda: DpoLossSettings(label_smoothing=0.6),
        lambda: score_loss(torch.zeros(2, 2), torch.zeros(2, 2), ScoreLossSettings()),
        lambda: general_preference(torch.zeros(2, 3), torch.zeros(2, 3)),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(AssertionError):
        wrong()
