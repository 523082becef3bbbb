"""Aggregation, and the promise that no split changes the loss or its gradient."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import all_micro_batches, cut, denominators, optimizer_step
from openrlhf_ext.batch.types import Experience, TokenBatch
from openrlhf_ext.ops.aggregate import AGGREGATIONS, aggregate
from openrlhf_ext.ops.mismatch import CorrectionSettings
from openrlhf_ext.ops.policy_loss import POLICY_LOSSES, PolicyLossSettings
from openrlhf_ext.ports import ModelOutput
from openrlhf_ext.trainers.objectives import PolicyObjective
from openrlhf_ext.types import RolloutKey

SETTINGS = st.one_of(
    st.builds(SplitSettings, ranks=st.integers(1, 4), rows=st.integers(1, 6)),
    st.builds(SplitSettings, ranks=st.integers(1, 4), max_tokens=st.integers(1, 40), packed=st.booleans()),
)
CORRECTIONS = st.sampled_from(
    [
        None,
        CorrectionSettings("token", "clip", "ratio", 0.8, 1.2),
        CorrectionSettings("token", "mask", "ratio", 0.8, 1.2),
        CorrectionSettings("seq", "mask", "ratio", 0.95, 1.05),
        CorrectionSettings("seq", "mask", "tv", 0.0, 0.02),
    ]
)
LOSSES = [
    (kind, mode) for kind in POLICY_LOSSES for mode in AGGREGATIONS if kind != "gspo" or mode == "seq-mean-token-mean"
]
VOCABULARY = 13


def make_experience(n: int, seed: int) -> Experience:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    lengths_B = torch.tensor([draw.randint(1, 12) for _ in range(n)])
    width = int(lengths_B.max())
    real_BA = torch.arange(1, width) < lengths_B[:, None]
    action_BA = real_BA & (torch.rand(n, width - 1) < 0.7)
    batch = TokenBatch(
        keys=tuple(RolloutKey(f"p{i}", 0) for i in range(n)),
        tokens_BT=torch.randint(VOCABULARY, (n, width)),
        lengths_B=lengths_B,
        action_BA=action_BA,
        sampler_logp_BA=torch.zeros(action_BA.shape),
    )
    columns = {
        "advantages": torch.randn(action_BA.shape, dtype=torch.float64) * action_BA,
        "old_logp": (-2.5 + 0.3 * torch.randn(action_BA.shape, dtype=torch.float64)) * action_BA,
        "sampler_logp": (-2.5 + 0.3 * torch.randn(action_BA.shape, dtype=torch.float64)) * action_BA,
    }
    return Experience(batch, columns)


def bigram_loss(weight_VV, micro, totals, objective):
    """The loss of the smallest model there is: a table of bigram logits."""
    tokens_BT, action_BA = micro.tokens_BT, micro.action_BA
    logp_BAV = torch.log_softmax(weight_VV[tokens_BT[:, :-1]], -1)
    logp_BA = logp_BAV.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1).where(action_BA, 0.0)
    return objective(ModelOutput(logp_BA), micro, totals)[0]


@pytest.mark.parametrize(("kind", "mode"), LOSSES)
@given(n=st.integers(1, 14), seed=st.integers(0, 10**6), split=SETTINGS, correction=CORRECTIONS)
def test_any_split_has_the_same_loss_and_gradient(kind, mode, n, seed, split, correction):
    experience = make_experience(n, seed)
    objective = PolicyObjective(PolicyLossSettings(kind), mode, max_tokens=20, correction=correction)
    weight_VV = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, requires_grad=True)
    totals = denominators(experience.batch.action_BA)
    whole = bigram_loss(weight_VV, cut(experience.batch, experience.columns, tuple(range(n))), totals, objective)
    (want,) = torch.autograd.grad(whole, weight_VV)
    step = optimizer_step(experience, range(n), split)
    assert all(shard.denominators == totals for shard in step)
    parts = [bigram_loss(weight_VV, micro, totals, objective) for micro in all_micro_batches(step)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    (got,) = torch.autograd.grad(torch.stack(parts).sum(), weight_VV)
    torch.testing.assert_close(got, want)
    for micro, part in zip(all_micro_batches(step), parts, strict=True):
        assert not micro.is_dummy or part == 0


def test_modes_by_hand():
    loss_BA = torch.tensor([[1.0, 2.0, 3.0], [10.0, float("inf"), float("nan")], [7.0, 7.0, 7.0]])
    action_BA = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    totals = denominators(action_BA)
    assert aggregate(loss_BA, action_BA, totals, "token-mean") == 16 / 4
    assert aggregate(loss_BA, action_BA, totals, "seq-mean-token-mean") == (2 + 10) / 2
    assert aggregate(loss_BA, action_BA, totals, "seq-mean-token-sum-norm", 4) == (6 + 10) / (2 * 4)
