"""Losses of preference pairs, one number for each pair: preference models from scores, DPO from log-probs.

P pairs, H numbers that a head gives, B sequences, A action positions. A pair's loss depends on nothing but
the pair, so the loss of an optimizer step is the sum of `loss_P` over all micro-batches and ranks, divided by
the pairs of the step (`mean_over_pairs`): how the step was cut or packed does not change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openrlhf_ext.types import Metric

CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class ScoreLossSettings:
    """`centring_coef` weighs the squared sum of a pair's scores (Eisenstein et al. 2023, arXiv:2312.09244)."""

    kind: Literal["sigmoid", "logexp", "general"] = "sigmoid"
    temperature: float = 1.0  # the difference of scores is divided by it
    centring_coef: float = 0.0

    def __post_init__(self) -> None:
        assert self.temperature > 0.0 and self.centring_coef >= 0.0
        assert self.kind != "general" or self.centring_coef == 0.0, (
            "the general model gives no score of its own to centre"
        )


@dataclass(frozen=True, slots=True)
class DpoLossSettings:
    kind: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0  # of the sigmoid: the probability that a pair is labelled the wrong way round
    nll_coef: float = 0.0  # of the chosen answers' negative log-likelihood, each answer's mean over its tokens
    length_normalised: bool = False  # log-probs are means over an answer's tokens instead of sums

    def __post_init__(self) -> None:
        assert self.beta > 0.0 and self.nll_coef >= 0.0
        assert 0.0 <= self.label_smoothing < 0.5
        assert self.kind == "sigmoid" or self.label_smoothing == 0.0, "label smoothing belongs to the sigmoid loss"


class PairLoss(NamedTuple):
    """`logit_P` is the log-odds, detached, that the model gives to the chosen answer's being the better one.

    `chosen_P` and `rejected_P` are what each answer is worth by itself, detached: its score, or DPO's
    implicit reward. The general preference model has none.
    """

    loss_P: Tensor
    logit_P: Tensor
    chosen_P: Tensor | None
    rejected_P: Tensor | None


class PairLogprobs(NamedTuple):
    """Log-probs of the answers of pairs, summed over the tokens of each answer."""

    chosen_P: Tensor
    rejected_P: Tensor


def mean_over_pairs(loss_P: Tensor, pairs: float) -> Tensor:
    """This micro-batch's part of the mean over the `pairs` of the optimizer step; 0 for no pairs."""
    return loss_P.sum() / pairs


def summed_logprobs(logp_BA: Tensor, action_BA: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) log-probs of whole answers, and (B,) how many tokens they have. What stands off actions is not read."""
    return logp_BA.where(action_BA, 0.0).sum(1), action_BA.sum(1)


def general_preference(chosen_PH: Tensor, rejected_PH: Tensor) -> Tensor:
    """(P,) how much the chosen answer is preferred: sum_k c_2k r_2k+1 - c_2k+1 r_2k, with H even.

    The general preference model (Zhang et al. 2024, arXiv:2410.02197) with all scales 1. It is
    antisymmetric, and unlike a difference of scores it can hold preferences that go in circles.
    """
    assert chosen_PH.shape == rejected_PH.shape and chosen_PH.shape[1] % 2 == 0, "an even number from the head"
    return (chosen_PH[:, 0::2] * rejected_PH[:, 1::2] - chosen_PH[:, 1::2] * rejected_PH[:, 0::2]).sum(1)


def score_loss(
    chosen_PH: Tensor, rejected_PH: Tensor, settings: ScoreLossSettings, margin_P: Tensor | None = None
) -> PairLoss:
    """-log sigmoid((s - margin) / temperature), s being by how much the chosen answer wins.

    `sigmoid` is Bradley and Terry's model (1952), with Llama 2's margin (Touvron et al. 2023,
    arXiv:2307.09288): s is the difference of the two scores, H is 1. `logexp` is the same number written as
    log(1 + exp(-s)) (Bai et al. 2022, arXiv:2204.05862). `general` takes s from `general_preference`.
    """
    if settings.kind == "general":
        advantage_P = general_preference(chosen_PH, rejected_PH)
    else:
        assert chosen_PH.shape[1] == rejected_PH.shape[1] == 1, "one score for each answer"
        advantage_P = (chosen_PH - rejected_PH).squeeze(1)
    shifted_P = advantage_P if margin_P is None else advantage_P - margin_P
    loss_P = -F.logsigmoid(shifted_P / settings.temperature)
    logit_P = (advantage_P / settings.temperature).detach()
    if settings.kind == "general":
        return PairLoss(loss_P, logit_P, None, None)
    chosen_P, rejected_P = chosen_PH.squeeze(1), rejected_PH.squeeze(1)
    if settings.centring_coef:
        loss_P = loss_P + settings.centring_coef * (chosen_P + rejected_P).square()
    return PairLoss(loss_P, logit_P, chosen_P.detach(), rejected_P.detach())


def dpo_loss(
    policy: PairLogprobs,
    reference: PairLogprobs,
    chosen_tokens_P: Tensor,
    rejected_tokens_P: Tensor,
    settings: DpoLossSettings,
) -> PairLoss:
    """The loss of the log-ratio h = (chosen's policy - reference) - (rejected's policy - reference).

    `sigmoid`: -log sigmoid(beta h) (Rafailov et al. 2023, arXiv:2305.18290), with label smoothing e the mean
    (1 - e) of it and e of -log sigmoid(-beta h) (cDPO, Mitchell 2023). `ipo`: (h - 1 / (2 beta))^2 (Azar et al.
    2023, arXiv:2310.12036; the authors take means over tokens, which is `length_normalised`). `hinge`:
    max(0, 1 - beta h) (SLiC, Zhao et al. 2023, arXiv:2305.10425, as in RSO, arXiv:2309.06657).

    `chosen_tokens_P` and `rejected_tokens_P` are how many tokens the sums of log-probs run over. The reference
    has no gradient, whatever comes in.
    """
    chosen_P, rejected_P = (
        policy.chosen_P - reference.chosen_P.detach(),
        policy.rejected_P - reference.rejected_P.detach(),
    )
    if settings.length_normalised:
        chosen_P, rejected_P = chosen_P / chosen_tokens_P.clamp(min=1), rejected_P / rejected_tokens_P.clamp(min=1)
    ratio_P = chosen_P - rejected_P
    logit_P = settings.beta * ratio_P
    if settings.kind == "ipo":
        loss_P = (ratio_P - 1 / (2 * settings.beta)).square()
    elif settings.kind == "hinge":
        loss_P = F.relu(1 - logit_P)
    else:
        loss_P = -F.logsigmoid(logit_P)
        if e := settings.label_smoothing:
            loss_P = (1 - e) * loss_P - e * F.logsigmoid(-logit_P)
    if settings.nll_coef:
        loss_P = loss_P - settings.nll_coef * policy.chosen_P / chosen_tokens_P.clamp(min=1)
    rewards = ((settings.beta * answer_P).detach() for answer_P in (chosen_P, rejected_P))
    return PairLoss(loss_P, logit_P.detach(), *rewards)


def pair_report(pairs: PairLoss) -> dict[str, Metric]:
    """Means over pairs: `loss`, `accuracy`, `margin`, and `chosen_reward` and `rejected_reward` where there are such.

    `margin` is the mean log-odds of the chosen answer (the difference of scores over the temperature, or of DPO's
    rewards). A pair of equal answers counts as wrong. Empty without pairs.
    """
    count = len(pairs.loss_P)
    if not count:
        return {}
    means = {"loss": pairs.loss_P.detach(), "accuracy": pairs.logit_P > 0, "margin": pairs.logit_P}
    if pairs.chosen_P is not None and pairs.rejected_P is not None:
        means |= {"chosen_reward": pairs.chosen_P, "rejected_reward": pairs.rejected_P}
    # One transfer for all of them: each would otherwise wait for the device by itself.
    totals = torch.stack([value_P.double().sum() for value_P in means.values()]).tolist()
    return {name: Metric(total, count) for name, total in zip(means, totals, strict=True)}


def calibration_table(logit_P: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """(bins, 3) float64 on the CPU: how many pairs, the sum of their confidences, how many of them were right.

    The confidence of a pair is the probability, between 0.5 and 1, of the answer that the model prefers; it is
    right if that is the chosen one. The bins are equally wide. Tables of parts add up to that of the whole.
    """
    confidence_P = logit_P.detach().double().abs().sigmoid().cpu()
    right_P = (logit_P.detach() > 0).double().cpu()
    bin_P = ((confidence_P - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    columns_P3 = torch.stack([torch.ones_like(confidence_P), confidence_P, right_P], dim=1)
    return torch.zeros(bins, 3, dtype=torch.float64).index_add_(0, bin_P, columns_P3)


def expected_calibration_error(table_K3: Tensor) -> float:
    """How far confidence is from accuracy, averaged over all pairs (Guo et al. 2017, arXiv:1706.04599).

    0 for a model that is right as often as it says, at most 1. Takes a table of at least one pair.
    """
    pairs = table_K3[:, 0].sum()
    assert pairs > 0, "a calibration is of some pairs"
    return float((table_K3[:, 1] - table_K3[:, 2]).abs().sum() / pairs)
