"""Pairs as optimizer steps, and held-out pairs as figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from openrlhf_ext.batch.pad import TokenRow, token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import optimizer_step
from openrlhf_ext.batch.types import Experience, OptimizerStep, TokenBatch
from openrlhf_ext.ops.preference_loss import (
    DpoLossSettings,
    PairLoss,
    ScoreLossSettings,
    calibration_table,
    dpo_loss,
    expected_calibration_error,
    pair_report,
    score_loss,
    summed_logprobs,
)
from openrlhf_ext.ports import SupervisedRole
from openrlhf_ext.trainers.preference import pairs_of
from openrlhf_ext.trainers.reference import Reference
from openrlhf_ext.types import merge_reports


class Pair(Protocol):
    """A preference pair (`data.preferences.PreferencePair`)."""

    @property
    def chosen(self) -> TokenRow: ...

    @property
    def rejected(self) -> TokenRow: ...

    @property
    def margin(self) -> float: ...


Columns = Callable[[TokenBatch], Mapping[str, Tensor]]
"""What an objective reads beside the tokens of a batch of pairs."""


def pair_batch(pairs: Sequence[Pair], pad_id: int) -> TokenBatch:
    """Rows 2p and 2p + 1 are the chosen and the rejected answer of pair p."""
    return token_batch([answer for pair in pairs for answer in (pair.chosen, pair.rejected)], pad_id)


def pair_step(batch: TokenBatch, columns: Mapping[str, Tensor], split: SplitSettings, ranks: int) -> OptimizerStep:
    """One optimizer step over a batch of pairs."""
    return optimizer_step(Experience(batch, columns), range(batch.rows), replace(split, ranks=ranks, unit=2))


def margin_column(pairs: Sequence[Pair], batch: TokenBatch) -> Tensor:
    """(B, A) with a pair's margin at the first position of both its rows."""
    column_BA = torch.zeros(batch.action_BA.shape)
    column_BA[:, 0] = torch.tensor([pair.margin for pair in pairs]).repeat_interleave(2)
    return column_BA


def score_evaluation(
    model: SupervisedRole, batches: Sequence[tuple[TokenBatch, Tensor | None]], loss: ScoreLossSettings
) -> dict[str, float]:
    """Of a preference model on held-out pairs, each batch with the margins of its rows or without: see `_figures`."""

    def losses() -> Iterable[PairLoss]:
        for batch, margin_BA in batches:
            scores_BH = model.scores(batch)
            yield score_loss(scores_BH[0::2], scores_BH[1::2], loss, None if margin_BA is None else margin_BA[0::2, 0])

    return _figures(losses())


def dpo_evaluation(
    model: SupervisedRole, reference: Reference, batches: Sequence[TokenBatch], loss: DpoLossSettings
) -> dict[str, float]:
    """Of DPO on held-out pairs: see `_figures`."""

    def losses() -> Iterable[PairLoss]:
        for batch in batches:
            logp_B, tokens_B = summed_logprobs(model.logprobs(batch), batch.action_BA)
            reference_B, _ = summed_logprobs(reference.column(batch), batch.action_BA)
            yield dpo_loss(pairs_of(logp_B), pairs_of(reference_B), tokens_B[0::2], tokens_B[1::2], loss)

    return _figures(losses())


def _figures(losses: Iterable[PairLoss]) -> dict[str, float]:
    """`eval/loss`, `eval/accuracy`, `eval/margin` and what else `pair_report` tells, and `eval/calibration_error`."""
    reports, table_K3 = [], None
    for pairs in losses:
        reports.append(pair_report(pairs))
        part_K3 = calibration_table(pairs.logit_P)
        table_K3 = part_K3 if table_K3 is None else table_K3 + part_K3
    assert table_K3 is not None, "an evaluation has pairs"
    figures = {f"eval/{name}": metric.value for name, metric in merge_reports(reports).items()}
    return figures | {"eval/calibration_error": expected_calibration_error(table_K3)}
