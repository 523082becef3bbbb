"""What the parity tests share: sizes, draws, a micro-batch of given columns, closeness."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from openrlhf_ext.batch.types import MicroBatch

GROUP, GROUPS, A = 4, 3, 10
B = GROUP * GROUPS


def float64(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def micro_batch(columns: SimpleNamespace, rows: slice = slice(None)) -> MicroBatch:
    """These rows with the columns that objectives read; no model reads its tokens."""
    names = ["advantages", "old_logp", "ref_logp", "sampler_logp", "returns"]
    action_BA = columns.action[rows]
    return MicroBatch(
        rows=tuple(range(len(action_BA))),
        tokens_BT=torch.zeros(len(action_BA), A + 1, dtype=torch.long),
        lengths_B=columns.length[rows] + 1,
        action_BA=action_BA,
        columns={name: getattr(columns, name)[rows] for name in names} | {"values": columns.old_values[rows]},
    )


def close(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got.double(), want.double(), atol=tolerance, rtol=tolerance)


def close_with_gradient(ours: Tensor, theirs: Tensor, by: Tensor, tolerance: float = 1e-6) -> None:
    close(ours, theirs, tolerance)
    close(torch.autograd.grad(ours, by)[0], torch.autograd.grad(theirs, by)[0], tolerance)
