"""Padding and splitting: nothing lost, nothing twice, and the same loss however it is cut."""

from __future__ import annotations

import random
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import (
    all_micro_batches,
    denominators,
    inference_split,
    joined_rows,
    optimizer_step,
    scatter_rows,
    scatter_whole_rows,
    train_steps,
)
from openrlhf_ext.batch.types import Experience
from openrlhf_ext.types import Rollout

PAD = 99
SETTINGS = st.one_of(
    st.builds(SplitSettings, ranks=st.integers(1, 4), rows=st.integers(1, 6)),
    st.builds(SplitSettings, ranks=st.integers(1, 4), max_tokens=st.integers(1, 80), packed=st.booleans()),
)


def make_rollouts(n: int, seed: int, longest: int = 20) -> list[Rollout]:
    """Random lengths; action masks with holes (multi-turn), now and then without any action."""
    draw = random.Random(seed)
    rollouts = []
    for i in range(n):
        prompt, response = draw.randint(1, longest // 2), draw.randint(0, longest // 2)
        mask = (False,) * prompt + tuple(draw.random() < 0.8 for _ in range(response))
        rollouts.append(
            Rollout(
                prompt_id=f"p{i // 2}",
                sample=i % 2,
                token_ids=tuple(draw.randrange(1, 50) for _ in mask),
                action_mask=mask,
                logprobs=tuple(-draw.random() if m else 0.0 for m in mask),
                text="",
                finish_reason="stop",
                versions=(0, 0),
            )
        )
    return rollouts


def make_experience(n: int, seed: int) -> Experience:
    batch = token_batch(make_rollouts(n, seed), PAD)
    noise = torch.randn(batch.action_BA.shape, generator=torch.Generator().manual_seed(seed))
    return Experience(batch=batch, columns={"advantages": noise * batch.action_BA})


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_padding_row_by_row(n, seed):
    rollouts = make_rollouts(n, seed)
    batch = token_batch(rollouts, PAD)
    width = max(len(r.token_ids) for r in rollouts)
    assert batch.tokens_BT.shape == (n, width) and batch.action_BA.shape == (n, width - 1)
    for b, r in enumerate(rollouts):
        rest = width - len(r.token_ids)
        assert batch.keys[b] == r.key
        assert batch.tokens_BT[b].tolist() == [*r.token_ids, *[PAD] * rest]
        assert batch.lengths_B[b] == len(r.token_ids)
        assert batch.action_BA[b].tolist() == [*r.action_mask[1:], *[False] * rest]
        torch.testing.assert_close(batch.sampler_logp_BA[b], torch.tensor([*r.logprobs[1:], *[0.0] * rest]))
    assert batch.tokens_BT.dtype == torch.int32 and batch.action_BA.dtype == torch.bool
    assert batch.sampler_logp_BA.dtype == torch.float32


def test_padding_ten_thousand_rows_takes_a_moment():
    rollouts = make_rollouts(100, 0, longest=1000) * 100
    start = time.process_time()
    batch = token_batch(rollouts, PAD)
    assert batch.rows == 10_000 and time.process_time() - start < 10


def test_a_log_probability_that_is_not_finite_is_ours_to_mend():
    rollout = Rollout("p", 0, (1, 2), (False, True), (0.0, float("nan")), "", "stop", (0, 0))
    with pytest.raises(AssertionError):
        token_batch([rollout], PAD)


@given(st.integers(1, 12), st.integers(0, 10**6), SETTINGS)
def test_scatter_is_the_inverse_of_the_inference_split(n, seed, settings):
    batch = token_batch(make_rollouts(n, seed), PAD)
    value_BA = torch.arange(batch.action_BA.numel(), dtype=torch.float32).reshape(batch.action_BA.shape) + 1
    micros = [micro for asked in inference_split(batch, settings) for micro in asked.micro_batches]
    random.Random(seed).shuffle(micros)
    outputs = []
    for micro in micros:
        real_BA = torch.arange(1, micro.tokens_BT.shape[1]) < micro.lengths_B[:, None]
        if micro.is_dummy:
            outputs.append(torch.full(micro.action_BA.shape, float("nan")))
        else:
            outputs.append(value_BA[torch.tensor(micro.rows), : real_BA.shape[1]] * real_BA)
    real_BA = torch.arange(1, batch.tokens_BT.shape[1]) < batch.lengths_B[:, None]
    assert torch.equal(scatter_rows(micros, outputs, batch.rows, value_BA.shape[1]), value_BA * real_BA)


@given(st.integers(1, 12), st.integers(0, 10**6), SETTINGS)
def test_a_rank_answers_for_all_its_rows_at_once(n, seed, settings):
    batch = token_batch(make_rollouts(n, seed), PAD)
    shares = inference_split(batch, settings)
    apart = [micro for asked in shares for micro in asked.micro_batches]
    of_micro = [torch.randn(micro.action_BA.shape) for micro in apart]
    outputs = iter(of_micro)
    joined = [joined_rows(asked, [next(outputs) for _ in asked.sizes]) for asked in shares]
    blocks = [asked.block for asked in shares]
    shape_BA = batch.action_BA.shape
    assert torch.equal(scatter_rows(blocks, joined, *shape_BA), scatter_rows(apart, of_micro, *shape_BA))


@given(st.integers(1, 12), st.integers(0, 10**6), SETTINGS)
def test_scores_of_rows_are_joined_too(n, seed, settings):
    batch = token_batch(make_rollouts(n, seed), PAD)
    shares = inference_split(batch, settings)
    scores = [[micro.lengths_B[:, None].float() for micro in asked.micro_batches] for asked in shares]
    joined = [joined_rows(asked, each) for asked, each in zip(shares, scores)]
    whole_B1 = scatter_whole_rows([asked.block for asked in shares], joined, n)
    assert torch.equal(whole_B1[:, 0], batch.lengths_B.float())


def test_scatter_refuses_a_missing_row():
    batch = token_batch(make_rollouts(4, 0), PAD)
    (asked,) = inference_split(batch, SplitSettings(rows=2))
    micros = asked.micro_batches
    with pytest.raises(AssertionError, match="every row exactly once"):
        scatter_rows(micros[:1], [m.action_BA.float() for m in micros[:1]], 4, batch.action_BA.shape[1])


@given(st.integers(1, 12), st.integers(0, 10**6), SETTINGS)
def test_micro_batches_are_cut_and_dummies_do_nothing(n, seed, settings):
    experience = make_experience(n, seed)
    batch = experience.batch
    for micro in all_micro_batches(optimizer_step(experience, range(n), settings)):
        width = micro.tokens_BT.shape[1]
        assert width == int(micro.lengths_B.max()) and micro.action_BA.shape[1] == width - 1
        if micro.is_dummy:
            assert not micro.action_BA.any() and not micro.columns["advantages"].any() and width <= 2
            continue
        for i, b in enumerate(micro.rows):
            assert torch.equal(micro.tokens_BT[i], batch.tokens_BT[b, :width])
            assert torch.equal(micro.action_BA[i], batch.action_BA[b, : width - 1])
            assert torch.equal(micro.columns["advantages"][i], experience.columns["advantages"][b, : width - 1])


@given(st.integers(1, 15), st.integers(0, 10**6), SETTINGS, st.integers(1, 6), st.integers(1, 3))
def test_every_row_once_per_epoch_and_the_short_step_is_kept(n, seed, settings, batch_size, epochs):
    experience = make_experience(n, seed)
    steps = train_steps(experience, settings, batch_size=batch_size, epochs=epochs, seed=seed)
    per_epoch = -(-n // batch_size)
    assert len(steps) == per_epoch * epochs
    sizes = [sum(len(m.rows) for m in all_micro_batches(step)) for step in steps]
    assert sizes == ([batch_size] * (n // batch_size) + [n % batch_size] * bool(n % batch_size)) * epochs
    for e in range(epochs):
        epoch = steps[e * per_epoch : (e + 1) * per_epoch]
        assert sorted(r for step in epoch for m in all_micro_batches(step) for r in m.rows) == list(range(n))
    for step in steps:
        assert len(step) == settings.ranks and len({len(s.micro_batches) for s in step}) == 1
        rows = torch.tensor([r for m in all_micro_batches(step) for r in m.rows])
        assert {s.denominators for s in step} == {denominators(experience.batch.action_BA[rows])}


def plan_of(steps):
    return [[m.rows for m in all_micro_batches(step)] for step in steps]


def test_the_order_is_drawn_from_the_seed_and_the_epoch():
    experience = make_experience(16, 1)
    split = SplitSettings(rows=2)
    plan = plan_of(train_steps(experience, split, batch_size=4, epochs=2, seed=7))
    assert plan == plan_of(train_steps(experience, split, batch_size=4, epochs=2, seed=7))
    assert plan != plan_of(train_steps(experience, split, batch_size=4, epochs=2, seed=8))
    assert plan[:4] != plan[4:]


def test_one_step_per_epoch_is_the_same_in_every_epoch():
    """The order of the rows must not matter where the step holds them all, so it must not show either."""
    rollouts = [Rollout(f"p{i}", 0, (1, 2), (False, True), (0.0, -1.0), "", "stop", (0, 0)) for i in range(9)]
    experience = Experience(token_batch(rollouts, PAD), {})
    steps = plan_of(train_steps(experience, SplitSettings(ranks=2, rows=2), batch_size=9, epochs=3, seed=0))
    assert steps[0] == steps[1] == steps[2]


def test_denominators_count_actions_and_rows_that_have_one():
    action_BA = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    assert (denominators(action_BA).tokens, denominators(action_BA).sequences) == (3.0, 2.0)
    nothing = denominators(torch.zeros(2, 3, dtype=torch.bool))
    assert (nothing.tokens, nothing.sequences) == (1.0, 1.0)
