"""The objectives of preference pairs: rows 2p and 2p + 1 of a micro-batch are the chosen and the rejected answer.

They are never parted (`SplitSettings.unit` 2), and the pairs of a step are half its sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openrlhf_ext.batch.types import Denominators, MicroBatch
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
from openrlhf_ext.ports import ModelOutput, ScoreOutput
from openrlhf_ext.types import Metric


@dataclass(frozen=True, slots=True)
class ScoreObjective:
    """A preference model's loss. With `margin` it reads the column of that name, at a chosen row's first position."""

    loss: ScoreLossSettings = field(default_factory=ScoreLossSettings)
    margin: bool = False
    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(
        self, output: ScoreOutput, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        scores_BH = output[0]
        if micro.is_dummy:
            return scores_BH.sum() * 0.0, {}
        margin_P = micro.columns["margin"][0::2, 0] if self.margin else None
        return _summed(score_loss(scores_BH[0::2], scores_BH[1::2], self.loss, margin_P), denominators)


@dataclass(frozen=True, slots=True)
class DpoObjective:
    """DPO's loss. It reads the column `ref_logp`, of which only each row's sum over actions has a meaning."""

    loss: DpoLossSettings = field(default_factory=DpoLossSettings)
    temperature: float = 1.0
    needs_entropy: bool = False

    def __call__(
        self, output: ModelOutput, micro: MicroBatch, denominators: Denominators
    ) -> tuple[Tensor, dict[str, Metric]]:
        if micro.is_dummy:
            return output.logp_BA.sum() * 0.0, {}
        logp_B, tokens_B = summed_logprobs(output.logp_BA, micro.action_BA)
        reference_B, _ = summed_logprobs(micro.columns["ref_logp"], micro.action_BA)
        pairs = dpo_loss(pairs_of(logp_B), pairs_of(reference_B), tokens_B[0::2], tokens_B[1::2], self.loss)
        return _summed(pairs, denominators)


def pairs_of(logp_B: Tensor) -> PairLogprobs:
    """Of rows, chosen and rejected in turns."""
    return PairLogprobs(logp_B[0::2], logp_B[1::2])


def _summed(pairs: PairLoss, denominators: Denominators) -> tuple[Tensor, dict[str, Metric]]:
    return mean_over_pairs(pairs.loss_P, denominators.sequences / 2), pair_report(pairs)


def sums_as_column(sums_B: Tensor, action_BA: Tensor) -> Tensor:
    """(B, A) with each row's number at its first action, so that its sum over actions is that number."""
    column_BA = torch.zeros(action_BA.shape, dtype=torch.float32)
    column_BA[torch.arange(len(sums_B)), action_BA.int().argmax(dim=1)] = sums_B.float()
    return column_BA
