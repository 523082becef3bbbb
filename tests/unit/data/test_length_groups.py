"""Which examples a step trains on."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.batch.partition import SplitSettings, micro_batches
from openrlhf_ext.data.length_groups import StepOrder

LENGTHS = st.lists(st.integers(1, 60).map(lambda n: (n,)), min_size=1, max_size=60)
SETTINGS = {"batch_size": st.integers(1, 9), "seed": st.integers(0, 99), "window": st.integers(1, 5)}


def drawn(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Lengths with a long tail, as texts have."""
    generator = random.Random(seed)
    return [(int(generator.lognormvariate(4.5, 0.8)) + 1,) for _ in range(n)]


@given(LENGTHS, st.fixed_dictionaries(SETTINGS))
def test_every_epoch_visits_every_example_once_in_steps_of_one_size(lengths, settings):
    order = StepOrder(lengths, **settings)
    for epoch in range(2):
        steps = [order.rows(epoch * order.steps_per_epoch + i) for i in range(order.steps_per_epoch)]
        assert sorted(row for step in steps for row in step) == list(range(len(lengths)))
        assert all(len(step) == settings["batch_size"] for step in steps[:-1])
        assert 0 < len(steps[-1]) <= settings["batch_size"]


@given(LENGTHS, st.fixed_dictionaries(SETTINGS), st.randoms(use_true_random=False))
def test_a_step_depends_on_its_number_and_nothing_before(lengths, settings, shuffler):
    """A run that is resumed in the middle trains on what a run that was never stopped trains on."""
    order = StepOrder(lengths, **settings)
    trace = [order.rows(step) for step in range(3 * order.steps_per_epoch)]
    numbers = list(range(len(trace)))
    shuffler.shuffle(numbers)
    for step in numbers:
        assert StepOrder(lengths, **settings).rows(step) == trace[step] == order.rows(step)


@given(LENGTHS, st.fixed_dictionaries(SETTINGS))
def test_the_first_step_has_the_longest_row_of_all_full_steps(lengths, settings):
    order = StepOrder(lengths, **settings)
    steps = [order.rows(step) for step in range(order.steps_per_epoch)]
    longest = [max(lengths[row][0] for row in rows) for rows in steps if len(rows) == settings["batch_size"]]
    assert not longest or longest[0] == max(longest)


def test_only_the_first_epoch_begins_with_the_longest_and_seeds_differ():
    lengths = drawn(64)
    settings = {"batch_size": 4}
    order = StepOrder(lengths, seed=1, **settings)
    longest = max(range(64), key=lambda row: lengths[row])
    assert longest in order.rows(0)
    starts = [StepOrder(lengths, seed=seed, **settings).rows(16) for seed in range(8)]
    assert sum(longest in rows for rows in starts) < 4
    assert len({tuple(rows) for rows in starts}) == 8
    assert order.rows(1) != order.rows(17)


@pytest.mark.parametrize("split", [SplitSettings(rows=4), SplitSettings(max_tokens=2048)])
def test_a_window_saves_padding(split):
    lengths = drawn(2000)

    def share_of_padding(window: int) -> float:
        order = StepOrder(lengths, batch_size=8, seed=0, window=window)
        padded = 0
        for step in range(order.steps_per_epoch):
            tokens = [lengths[row][0] for row in order.rows(step)]
            padded += sum(split.cost(tokens, part) for rank in micro_batches(tokens, split) for part in rank)
        return 1 - sum(n for (n,) in lengths) / padded

    assert share_of_padding(50) < 0.03 < 0.2 < share_of_padding(1)


def test_pairs_are_grouped_by_their_longer_answer():
    generator = random.Random(3)
    lengths = [(generator.randrange(1, 99), generator.randrange(1, 99)) for _ in range(80)]
    order = StepOrder(lengths, batch_size=8, seed=0, window=10)
    longest = [[max(lengths[row]) for row in order.rows(step)] for step in range(10)]
    assert all(step == sorted(step, reverse=True) for step in longest)
    ends = sorted((step[-1], step[0]) for step in longest)
    assert all(top <= low for (_, top), (low, _) in pairwise(ends))
    assert longest[0][0] == max(step[0] for step in longest)
