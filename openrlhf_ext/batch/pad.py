"""Rollouts to tensors: right padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from openrlhf_ext.batch.types import TokenBatch
from openrlhf_ext.types import RolloutKey

Row: TypeAlias = Sequence[float] | NDArray[Any]
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
    tokens = [rollout.token_ids for rollout in rollouts]
    action_BA = padded([rollout.action_mask[1:] for rollout in rollouts], False, np.bool_)
    sampler_logp_BA = padded([rollout.logprobs[1:] for rollout in rollouts], 0.0, np.float32)
    np.copyto(sampler_logp_BA, 0.0, where=~action_BA)
    assert np.isfinite(sampler_logp_BA).all(), "a sampled token has a finite log-probability"
    return TokenBatch(
        keys=tuple(rollout.key for rollout in rollouts),
        tokens_BT=torch.from_numpy(padded(tokens, pad_id, np.int32)),
        lengths_B=torch.from_numpy(row_lengths(tokens)),
        action_BA=torch.from_numpy(action_BA),
        sampler_logp_BA=torch.from_numpy(sampler_logp_BA),
    )


def row_lengths(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.fromiter(map(len, rows), np.int64, len(rows))


def padded(rows: Sequence[Row], behind: float, dtype: type[np.generic]) -> NDArray[Any]:
    """(B, width of the longest) with the rows on the left and a value `behind` them."""
    array = np.full((len(rows), row_lengths(rows).max()), behind, dtype)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array
