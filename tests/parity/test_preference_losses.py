"""Losses of preference pairs against openrlhf 0.11.2's and those of trl's own trainers, with gradients.

Where the definitions differ nothing is compared: openrlhf's log-exp loss reads no margin, and it overflows for
scores far apart; trl's IPO is always of means over tokens, openrlhf's of sums; trl's likelihood term is a mean over
the tokens of all chosen answers, ours and openrlhf's the mean of each answer's own mean.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from parity_tensors import A, B, close, close_with_gradient, float64
from torch import Tensor
from trl_pairs import dpo_loss as trl_dpo_loss
from trl_pairs import reward_loss as trl_reward_loss

from openrlhf_ext.ops.preference_loss import (
    DpoLossSettings,
    PairLogprobs,
    PairLoss,
    ScoreLossSettings,
    dpo_loss,
    mean_over_pairs,
    pair_report,
    score_loss,
    summed_logprobs,
)

P = B // 2
SPREAD = [1.0, 12.0]  # of scores: about the margin, and far apart


@pytest.fixture(scope="session")
def trl_pairs(trl) -> SimpleNamespace:
    """The trainers of trl that learn from pairs."""
    return SimpleNamespace(
        DPOTrainer=importlib.import_module("trl.trainer.dpo_trainer").DPOTrainer,
        RewardTrainer=importlib.import_module("trl.trainer.reward_trainer").RewardTrainer,
    )


@pytest.fixture
def scored() -> SimpleNamespace:
    """(2 P, 1) scores, those of the chosen answers first, and a margin for each pair."""
    generator = torch.Generator().manual_seed(11)
    return SimpleNamespace(score_BH=float64(generator, B, 1), margin_P=float64(generator, P).abs())


def our_score_loss(score_BH: Tensor, margin_P: Tensor | None, settings: ScoreLossSettings) -> tuple[Tensor, PairLoss]:
    """Two micro-batches with the denominator of the whole step."""
    chosen_PH, rejected_PH = score_BH.chunk(2)
    margins = (None, None) if margin_P is None else (margin_P[:2], margin_P[2:])
    cuts = ((slice(0, 2), margins[0]), (slice(2, P), margins[1]))
    loss = sum(mean_over_pairs(score_loss(chosen_PH[c], rejected_PH[c], settings, m).loss_P, P) for c, m in cuts)
    assert isinstance(loss, Tensor)
    return loss, score_loss(chosen_PH, rejected_PH, settings, margin_P)


def our_dpo_loss(columns: SimpleNamespace, settings: DpoLossSettings) -> tuple[Tensor, PairLoss]:
    """Rows 0 to P - 1 hold the chosen answers, P to 2 P - 1 the rejected ones; two micro-batches."""
    logp_B, tokens_B = summed_logprobs(columns.logp, columns.action)
    ref_logp_B, _ = summed_logprobs(columns.ref_logp, columns.action)
    policy, reference, tokens = ([x[:P], x[P:]] for x in (logp_B, ref_logp_B, tokens_B))

    def part(cut: slice) -> PairLoss:
        some = [PairLogprobs(*(x[cut] for x in each)) for each in (policy, reference)]
        return dpo_loss(*some, *(x[cut] for x in tokens), settings)

    loss = sum(mean_over_pairs(part(cut).loss_P, P) for cut in (slice(0, 2), slice(2, P)))
    assert isinstance(loss, Tensor)
    return loss, part(slice(None))


def own(columns: SimpleNamespace) -> Tensor:
    """Log-probs that are zero off actions in their gradient too: theirs are masked where they are made."""
    return columns.logp.where(columns.action, 0.0)


# --- openrlhf ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_with_margin(openrlhf, scored, with_margin, spread):
    score_BH = (spread * scored.score_BH).requires_grad_()
    margin_P = scored.margin_P if with_margin else None
    ours, _ = our_score_loss(score_BH, margin_P, ScoreLossSettings())
    theirs = openrlhf.loss.PairWiseLoss()(*score_BH.squeeze(1).chunk(2), margin_P)
    close_with_gradient(ours, theirs, score_BH)


@pytest.mark.parametrize("spread", SPREAD)
def test_log_exp(openrlhf, scored, spread):
    score_BH = (spread * scored.score_BH).requires_grad_()
    ours, _ = our_score_loss(score_BH, None, ScoreLossSettings("logexp"))
    close_with_gradient(ours, openrlhf.loss.LogExpLoss()(*score_BH.squeeze(1).chunk(2)), score_BH)


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.1), ("sigmoid", 0.4), ("ipo", 0.0)])
def test_dpo_cdpo_and_ipo(openrlhf, columns, kind, smoothing, beta):
    columns.logp.requires_grad_()
    ours, pairs = our_dpo_loss(columns, DpoLossSettings(kind, beta, smoothing))
    sums = [*own(columns).sum(1).chunk(2), *columns.ref_logp.sum(1).chunk(2)]
    theirs, chosen_P, rejected_P = openrlhf.loss.DPOLoss(beta, smoothing, ipo=kind == "ipo")(*sums)
    close_with_gradient(ours, theirs, columns.logp)
    close(pairs.chosen_P, chosen_P)
    close(pairs.rejected_P, rejected_P)


def test_dpo_with_a_likelihood_term(openrlhf, columns):
    """Put together as their trainer does it, from its own log-probs of a prompt's length and a padding mask."""
    trainer = importlib.import_module("openrlhf.trainer.dpo_trainer").DPOTrainer
    prompts = [1 + b % 3 for b in range(P)] * 2
    mask_BT = torch.arange(A + 1) < columns.length[:, None] + 1
    columns.action = mask_BT[:, 1:] & (torch.arange(1, A + 1) >= torch.tensor(prompts)[:, None])
    columns.logp.requires_grad_()
    ours, _ = our_dpo_loss(columns, DpoLossSettings(nll_coef=0.2))
    sums_B, means_B = trainer._get_batch_logps(None, columns.logp, mask_BT.long(), prompts)
    ref_B, _ = trainer._get_batch_logps(None, columns.ref_logp, mask_BT.long(), prompts)
    preference, _, _ = openrlhf.loss.DPOLoss(0.1)(*sums_B.chunk(2), *ref_B.chunk(2))
    close_with_gradient(ours, preference - 0.2 * means_B[:P].mean(), columns.logp)


# --- trl ---------------------------------------------------------------------------------------------------

TRL_DPO = [
    (DpoLossSettings("sigmoid", 0.1), ["sigmoid"]),
    (DpoLossSettings("sigmoid", 2.0, length_normalised=True), ["sigmoid_norm"]),
    (DpoLossSettings("ipo", 0.1, length_normalised=True), ["ipo"]),
    (DpoLossSettings("hinge", 0.3), ["hinge"]),
]


@pytest.mark.parametrize(("settings", "kinds"), TRL_DPO, ids=lambda x: x[0] if isinstance(x, list) else "")
def test_dpo_of_trl(trl_pairs, columns, settings, kinds):
    columns.logp.requires_grad_()
    ours, pairs = our_dpo_loss(columns, settings)
    theirs, metrics = trl_dpo_loss(
        trl_pairs.DPOTrainer, own(columns), columns.ref_logp, columns.action, beta=settings.beta, loss_types=kinds
    )
    close_with_gradient(ours, theirs, columns.logp)
    report = pair_report(pairs)
    if not settings.length_normalised:  # their rewards are sums always
        assert report["accuracy"].value == pytest.approx(metrics["rewards/accuracies"])
        assert report["margin"].value == pytest.approx(metrics["rewards/margins"])
        assert report["chosen_reward"].value == pytest.approx(metrics["rewards/chosen"])
        assert report["rejected_reward"].value == pytest.approx(metrics["rewards/rejected"])


def test_the_likelihood_term_of_trl_for_answers_of_one_length(trl_pairs, columns):
    columns.action = torch.ones_like(columns.action)
    columns.logp.requires_grad_()
    ours, _ = our_dpo_loss(columns, DpoLossSettings(nll_coef=0.3))
    kinds = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}
    theirs, _ = trl_dpo_loss(trl_pairs.DPOTrainer, own(columns), columns.ref_logp, columns.action, beta=0.1, **kinds)
    close_with_gradient(ours, theirs, columns.logp)


@pytest.mark.parametrize("centring", [None, 0.01, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
def test_reward_loss_of_trl(trl_pairs, scored, with_margin, centring):
    score_BH = scored.score_BH.requires_grad_()
    margin_P = scored.margin_P if with_margin else None
    ours, pairs = our_score_loss(score_BH, margin_P, ScoreLossSettings(centring_coef=centring or 0.0))
    theirs, metrics = trl_reward_loss(trl_pairs.RewardTrainer, score_BH.squeeze(1), margin_P, centring)
    close_with_gradient(ours, theirs, score_BH)
    report = pair_report(pairs)
    assert report["accuracy"].value == pytest.approx(metrics["accuracy"])
    assert report["margin"].value == pytest.approx(metrics["margin"])
