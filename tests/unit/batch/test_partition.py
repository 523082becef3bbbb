"""The plan of rows over micro-batches and ranks."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openrlhf_ext.batch.partition import SplitSettings, micro_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
SETTINGS = st.one_of(
    st.builds(SplitSettings, ranks=st.integers(1, 5), rows=st.integers(1, 9), packed=st.booleans()),
    st.builds(SplitSettings, ranks=st.integers(1, 5), max_tokens=st.integers(1, 150), packed=st.booleans()),
)


@given(LENGTHS, SETTINGS)
def test_every_row_once_and_equal_counts(lengths, settings):
    plan = micro_batches(lengths, settings)
    assert len(plan) == settings.ranks
    assert len({len(rank) for rank in plan}) == 1
    assert sorted(r for rank in plan for rows in rank for r in rows) == list(range(len(lengths)))
    assert plan == micro_batches(lengths, settings)


@given(LENGTHS, SETTINGS)
@example([50, 50, 50], SplitSettings(max_tokens=75, packed=True))  # two bins would hold the sum, not the rows
@example([70, 50, 20, 200], SplitSettings(max_tokens=75, packed=True))
@example([70, 50, 20, 200], SplitSettings(max_tokens=75))
def test_limits_are_kept(lengths, settings):
    for rows in (rows for rank in micro_batches(lengths, settings) for rows in rank):
        if settings.rows is not None:
            assert len(rows) <= settings.rows
        else:
            assert settings.cost(lengths, rows) <= settings.max_tokens or len(rows) == 1


@given(LENGTHS, SETTINGS)
def test_a_dummy_only_where_rows_are_fewer_than_ranks(lengths, settings):
    plan = micro_batches(lengths, settings)
    dummies = sum(not rows for rank in plan for rows in rank)
    assert dummies < settings.ranks
    if dummies:
        assert all(len(rows) <= 1 for rank in plan for rows in rank)


@given(LENGTHS, SETTINGS)
def test_ranks_differ_by_at_most_the_dearest_micro_batch(lengths, settings):
    plan = micro_batches(lengths, settings)
    costs = [[settings.cost(lengths, rows) for rows in rank] for rank in plan]
    assert max(map(sum, costs)) - min(map(sum, costs)) <= max(map(max, costs))


def test_the_dearest_of_a_round_goes_to_the_least_loaded_rank():
    assert micro_batches([10, 8, 6, 4], SplitSettings(ranks=2, rows=1)) == [[(0,), (3,)], [(1,), (2,)]]


def test_fixed_rows_that_divide_are_exact():
    plan = micro_batches([7] * 32, SplitSettings(ranks=2, rows=4))
    assert [[len(rows) for rows in rank] for rank in plan] == [[4] * 4] * 2


def test_fewer_rows_than_one_micro_batch_per_rank_are_shared_out():
    plan = micro_batches([5, 9, 6, 8], SplitSettings(ranks=2, rows=8))
    assert [[sorted(rows) for rows in rank] for rank in plan] == [[[1, 3]], [[0, 2]]]


@given(LENGTHS, st.integers(1, 9))
def test_fixed_rows_on_one_rank_take_no_more_micro_batches_than_needed(lengths, rows):
    (rank,) = micro_batches(lengths, SplitSettings(rows=rows))
    assert len(rank) == -(-len(lengths) // rows)


@given(LENGTHS, st.integers(60, 150))
def test_budget_on_one_rank_is_near_the_lower_bound(lengths, budget):
    (packed,) = micro_batches(lengths, SplitSettings(max_tokens=budget, packed=True))
    # Of any two bins that could not be merged, the sum is above the budget.
    assert len(packed) <= 2 * -(-sum(lengths) // budget) + 1
    (padded,) = micro_batches(lengths, SplitSettings(max_tokens=budget))
    assert len(padded) >= -(-sum(lengths) // budget)
    assert len(padded) <= -(-len(lengths) // max(budget // max(lengths), 1))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lengths", [[600] * 10_000, [1 + (i * 7919) % 999 for i in range(10_000)]])
def test_ten_thousand_rows_take_a_moment(lengths, packed):
    start = time.perf_counter()
    micro_batches(lengths, SplitSettings(ranks=8, max_tokens=1000, packed=packed))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("wrong", [{}, {"rows": 1, "max_tokens": 1}, {"rows": 0}, {"rows": 1, "ranks": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(AssertionError):
        SplitSettings(**wrong)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.booleans(),
    st.one_of(st.tuples(st.integers(1, 5), st.none()), st.tuples(st.none(), st.integers(1, 300))),
)
def test_pairs_are_never_parted(pairs, ranks, packed, limit):
    rows, budget = limit
    settings = SplitSettings(ranks=ranks, rows=rows, max_tokens=budget, packed=packed, unit=2)
    lengths = [length for pair in pairs for length in pair]
    parts = [part for rank in micro_batches(lengths, settings) for part in rank]
    for part in parts:
        assert all(a % 2 == 0 and b == a + 1 for a, b in zip(part[0::2], part[1::2], strict=True))
        if rows is not None:
            assert len(part) <= 2 * rows
        elif len(part) > 2:
            assert settings.cost(lengths, part) <= budget
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
