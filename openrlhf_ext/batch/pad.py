"""Rollouts to tensors: right padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ext.batch.types import TokenBatch
from openrlhf_ext.types import RolloutKey

Tokens: TypeAlias = Sequence[int] | NDArray[np.int32]


class TokenRow(Protocol):
    """What a row of a batch is made from: a rollout, which has arrays, or a supervised example."""

    @property
    def key(self) -> RolloutKey: ...

    @property
    def token_ids(self) -> Tokens: ...

    @property
    def action_mask(self) -> Sequence[bool] | NDArray[np.bool_]: ...

    @property
    def logprobs(self) -> Sequence[float] | NDArray[np.float32]: ...


def token_batch(rollouts: Sequence[TokenRow], pad_id: int) -> TokenBatch:
    """Pad rollouts or examples on the right into one TokenBatch, row b being `rollouts[b]`.

    Action columns are shifted by one: position a of `action_BA` and `sampler_logp_BA` speaks of
    token a + 1.
    """
    assert rollouts, "a batch has at least one rollout"
    lengths_B = row_lengths([rollout.token_ids for rollout in rollouts])
    shape_BA = (len(rollouts), int(lengths_B.max()) - 1)
    action_BA, sampler_logp_BA = np.zeros(shape_BA, np.bool_), np.zeros(shape_BA, np.float32)
    for row, rollout in enumerate(rollouts):
        action_A = np.asarray(rollout.action_mask, np.bool_)[1:]
        action_BA[row, : len(action_A)] = action_A
        logp_A = np.asarray(rollout.logprobs, np.float32)[1:]
        np.copyto(sampler_logp_BA[row, : len(action_A)], logp_A, where=action_A)
    assert np.isfinite(sampler_logp_BA).all(), "a sampled token has a finite log-probability"
    return TokenBatch(
        keys=tuple(rollout.key for rollout in rollouts),
        tokens_BT=torch.from_numpy(padded_tokens([rollout.token_ids for rollout in rollouts], pad_id)),
        lengths_B=torch.from_numpy(lengths_B),
        action_BA=torch.from_numpy(action_BA),
        sampler_logp_BA=torch.from_numpy(sampler_logp_BA),
    )


def row_lengths(rows: Sequence[Tokens]) -> NDArray[np.int64]:
    return np.fromiter(map(len, rows), np.int64, len(rows))


def padded_tokens(rows: Sequence[Tokens], pad_id: int) -> NDArray[np.int64]:
    """(B, T) with the rows on the left and `pad_id` behind them."""
    lengths_B = row_lengths(rows)
    tokens_BT = np.full((len(rows), lengths_B.max()), pad_id, np.int64)
    for row, (tokens, length) in enumerate(zip(rows, lengths_B, strict=True)):
        tokens_BT[row, :length] = tokens
    return tokens_BT
