"""The largest micro-batch that the planner expects is the largest that the splitter makes."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.batch.partition import SplitSettings, micro_batches
from openrlhf_ext.engine.deepspeed_config import effective_stage
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.plan.placing import Cut, attention, stage_that_runs
from openrlhf_ext.plan.types import Card, Hardware

OLD = Hardware(Card("T4", 15_000_000_000, 300_000_000, 65e12, 320e9, 16e9, bf16=False), 1)
NEW = Hardware(Card("H100", 80_000_000_000, 500_000_000, 989e12, 3e12, 450e9), 1)
CPU = Hardware(None, 0)


@given(
    lengths=st.lists(st.integers(2, 64), min_size=1, max_size=40),
    rows=st.integers(1, 9),
    ranks=st.integers(1, 5),
    packed=st.booleans(),
    unit=st.sampled_from([1, 2]),
)
def test_rows_bound_what_is_cut(lengths: list[int], rows: int, ranks: int, packed: bool, unit: int):
    lengths = lengths * unit  # whole units
    largest = Cut(length=max(lengths), selected=1, rows=rows, unit=unit).largest(len(lengths), ranks)
    settings = SplitSettings(ranks=ranks, rows=rows, packed=packed, unit=unit)
    parts = [part for rank in micro_batches(lengths, settings) for part in rank]
    assert max(len(part) for part in parts) == largest.rows
    assert max(settings.cost(lengths, part) for part in parts) <= largest.tokens


@given(
    lengths=st.lists(st.integers(2, 64), min_size=1, max_size=40),
    budget=st.integers(8, 200),
    ranks=st.integers(1, 5),
    packed=st.booleans(),
)
def test_a_budget_bounds_what_is_cut(lengths: list[int], budget: int, ranks: int, packed: bool):
    largest = Cut(length=max(lengths), selected=1, max_tokens=budget).largest(len(lengths), ranks)
    settings = SplitSettings(ranks=ranks, max_tokens=budget, packed=packed)
    parts = [part for rank in micro_batches(lengths, settings) for part in rank]
    assert max(settings.cost(lengths, part) for part in parts) <= largest.tokens


def test_rows_of_full_length_meet_the_bound():
    # 100 sequences by 8 are 13 parts, 14 on 2 ranks: 8 rows at the most, 8 x 50 tokens, 8 x 20 answers.
    largest = Cut(length=50, selected=20, rows=8).largest(100, 2, backward=True, entropy=True, columns=3)
    assert (largest.rows, largest.tokens, largest.selected) == (8, 400, 160)
    assert (largest.backward, largest.entropy, largest.extra_columns) == (True, True, 3)


def test_few_sequences_make_small_micro_batches():
    assert Cut(length=50, selected=20, rows=8).largest(6, 2).rows == 3


def test_a_budget_below_one_row_is_one_row():
    largest = Cut(length=50, selected=49, max_tokens=30).largest(100, 2)
    assert (largest.rows, largest.tokens, largest.selected) == (1, 50, 49)


def test_a_budget_is_filled_by_shorter_rows():
    # Three rows of 50 are 150 tokens, eight of 20 are 160.
    assert Cut(length=50, selected=25, max_tokens=160).largest(100, 2).tokens == 160


def test_entropy_is_for_a_backward_pass():
    assert not Cut(length=50, selected=20, rows=8).largest(100, 2, entropy=True).entropy


@pytest.mark.parametrize(
    ("trainable", "stage", "dtype", "accumulated", "adam", "param"),
    [
        case
        for case in product(
            (True, False), (0, 1, 2, 3), ("bf16", "fp16", "fp32"), (None, "bf16", "fp32"), (True, False), (True, False)
        )
        if not (case[0] and case[-1])
    ],
)
def test_the_stage_is_the_engine_s(trainable, stage, dtype, accumulated, adam, param):
    spec = EngineSpec(
        trainable=trainable,
        zero_stage=stage,
        dtype=dtype,
        grad_accum_dtype=accumulated,
        adam_offload=adam,
        param_offload=param,
    )
    planned = stage_that_runs(
        stage, trainable=trainable, dtype=dtype, grad_accum_dtype=accumulated, adam_offload=adam, param_offload=param
    )
    assert planned == effective_stage(spec)


@pytest.mark.parametrize("wanted", ["flash_attention_2", "torch_varlen", "sdpa", "eager"])
def test_special_kernels_need_a_gpu_that_has_them(wanted: str):
    plain = "sdpa" if wanted in ("flash_attention_2", "torch_varlen") else wanted
    assert attention(wanted, NEW) == wanted
    assert attention(wanted, OLD) == plain
    assert attention(wanted, CPU) == plain
