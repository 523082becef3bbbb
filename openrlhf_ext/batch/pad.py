"""Rollouts to tensors: right padding."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from openrlhf_ext.batch.types import TokenBatch
from openrlhf_ext.types import RolloutKey


class TokenRow(Protocol):
    """What a row of a batch is made from: a rollout, or a supervised example."""

    @property
    def key(self) -> RolloutKey: ...

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def action_mask(self) -> tuple[bool, ...]: ...

    @property
    def logprobs(self) -> tuple[float, ...]: ...


def token_batch(rollouts: Sequence[TokenRow], pad_id: int) -> TokenBatch:
    """Pad rollouts or examples on the right into one TokenBatch, row b being `rollouts[b]`.

    Action columns are shifted by one: position a of `action_BA` and `sampler_logp_BA` speaks of
    token a + 1.
    """
    assert rollouts, "a batch has at least one rollout"
    # Flat buffers filled row by row: no tensor is made per row, which would dominate at 10k rows.
    tokens, action, logp = array("q"), array("b"), array("f")
    for rollout in rollouts:
        tokens.extend(rollout.token_ids)
        action.extend(rollout.action_mask)
        logp.extend(rollout.logprobs)
    lengths_B = torch.tensor([len(r.token_ids) for r in rollouts], dtype=torch.int64)
    real_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]

    def padded(flat: array, dtype: torch.dtype, fill: int) -> Tensor:
        values = torch.frombuffer(flat, dtype=dtype)
        return torch.full(real_BT.shape, fill, dtype=dtype).masked_scatter_(real_BT, values)

    action_BA = padded(action, torch.int8, 0)[:, 1:].bool()
    sampler_logp_BA = padded(logp, torch.float32, 0)[:, 1:].masked_fill(~action_BA, 0.0)
    assert bool(torch.isfinite(sampler_logp_BA).all()), "a sampled token has a finite log-probability"
    return TokenBatch(
        keys=tuple(r.key for r in rollouts),
        tokens_BT=padded(tokens, torch.int64, pad_id),
        lengths_B=lengths_B,
        action_BA=action_BA,
        sampler_logp_BA=sampler_logp_BA,
    )
