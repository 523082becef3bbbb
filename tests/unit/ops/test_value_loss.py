from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.ops.value_loss import value_loss


@pytest.mark.parametrize("clip", [None, 0.2, 0.5])
@given(seed=st.integers(0, 999))
def test_value_by_value(clip, seed):
    draw = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values_BA, old_values_BA, returns_BA = draw[0].requires_grad_(), draw[1], draw[2]
    loss_BA, clipped_BA = value_loss(values_BA, old_values_BA, returns_BA, clip)
    (grad_BA,) = torch.autograd.grad(loss_BA.sum(), values_BA)
    for b in range(4):
        for a in range(6):
            value, old, target = values_BA[b, a].item(), old_values_BA[b, a].item(), returns_BA[b, a].item()
            near = value if clip is None else min(max(value, old - clip), old + clip)
            stopped = (near - target) ** 2 > (value - target) ** 2
            assert loss_BA[b, a].item() == pytest.approx(max((value - target) ** 2, (near - target) ** 2) / 2)
            assert clipped_BA[b, a].item() == stopped
            assert grad_BA[b, a].item() == pytest.approx(0.0 if stopped else value - target)
