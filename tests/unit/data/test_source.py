"""The order of the prompts over steps, epochs and restarts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.errors import DataError
from openrlhf_ext.types import Prompt


def prompts(n):
    return [Prompt(f"p{i}", (i,), f"text {i}") for i in range(n)]


def ids(batch):
    return (batch.epoch, [prompt.id for prompt in batch.prompts])


def drain(source):
    return [ids(batch) for batch in iter(source.next_batch, None)]


def test_638_prompts_at_64_are_ten_steps():
    source = PromptSource(prompts(638), batch_size=64, episodes=2)
    assert (source.steps_per_epoch, source.total_steps) == (10, 20)
    sizes = [len(batch) for _, batch in drain(source)]
    assert sizes == ([64] * 9 + [62]) * 2
    source = PromptSource(prompts(638), batch_size=64, drop_last=True)
    assert source.total_steps == 9
    assert [len(batch) for _, batch in drain(source)] == [64] * 9


sizes = st.integers(1, 30)


@given(n=sizes, batch=sizes, episodes=st.integers(1, 3), seed=st.integers(0, 5), drop_last=st.booleans())
def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own(n, batch, episodes, seed, drop_last):
    if drop_last and n < batch:
        with pytest.raises(DataError, match="drop_last"):
            PromptSource(prompts(n), batch_size=batch, drop_last=True)
        return
    source = PromptSource(prompts(n), batch_size=batch, episodes=episodes, seed=seed, drop_last=drop_last)
    batches = drain(source)
    assert len(batches) == source.total_steps
    for epoch in range(episodes):
        drawn = [name for e, names in batches if e == epoch for name in names]
        assert len(set(drawn)) == len(drawn) == (n // batch * batch if drop_last else n)
    again = PromptSource(prompts(n), batch_size=batch, episodes=episodes, seed=seed, drop_last=drop_last)
    assert drain(again) == batches


@given(n=sizes, batch=sizes, rounds=st.integers(1, 4), episodes=st.integers(1, 2), drop_last=st.booleans())
def test_a_round_is_whole_batches_of_one_epoch_and_the_source_knows_its_last(n, batch, rounds, episodes, drop_last):
    if drop_last and n < batch:
        return

    def source(round_size):
        return PromptSource(prompts(n), batch_size=batch, round_size=round_size, episodes=episodes, drop_last=drop_last)

    in_rounds, known, in_batches = source(batch * rounds), [], drain(source(None))
    drawn = []
    while (taken := in_rounds.next_batch()) is not None:
        drawn.append(ids(taken))
        known.append(in_rounds.exhausted)
    assert known == [False] * (len(drawn) - 1) + [True]
    assert all(len(names) <= batch * rounds for _, names in drawn)
    cut = [(e, names[at : at + batch]) for e, names in drawn for at in range(0, len(names), batch)]
    assert cut == in_batches


def test_a_prompt_is_found_by_its_id():
    source = PromptSource(prompts(5), batch_size=2)
    assert source.by_id["p3"] == prompts(5)[3]


def test_epochs_and_seeds_differ():
    batches = drain(PromptSource(prompts(20), batch_size=20, episodes=2, seed=1))
    other = drain(PromptSource(prompts(20), batch_size=20, seed=2))
    assert batches[0][1] != batches[1][1]
    assert batches[0][1] != other[0][1]


@given(n=sizes, batch=sizes, takes=st.lists(st.integers(0, 7), max_size=12), cut=st.integers(0, 12))
def test_restored_anywhere_it_draws_the_same(n, batch, takes, cut):
    def act(source, taken):
        return ids(source.take(taken)) if taken else ((b := source.next_batch()) and ids(b))

    source = PromptSource(prompts(n), batch_size=batch, episodes=3)
    for taken in takes[:cut]:
        act(source, taken)
    resumed = PromptSource(prompts(n), batch_size=batch, episodes=3)
    resumed.restore(json.loads(json.dumps(source.state())))
    assert [act(resumed, t) for t in takes[cut:]] == [act(source, t) for t in takes[cut:]]
    assert drain(resumed) == drain(source)
    assert resumed.state() == source.state()


def test_a_refill_stays_within_the_epoch():
    source = PromptSource(prompts(10), batch_size=6, episodes=2)
    step = [*source.next_batch().prompts, *source.take(3).prompts]
    step += source.take(3).prompts  # one was left
    assert len(step) == 10
    assert source.take(1).prompts == ()
    assert max(Counter(prompt.id for prompt in step).values()) == 1
    assert source.state()["consumed"] == 10
    assert source.next_batch().epoch == 1


def test_restore_refuses_other_data_or_another_seed():
    state = PromptSource(prompts(5), batch_size=2, seed=1).state()
    data = prompts(5)
    for other in (prompts(4), data[::-1], [replace(data[0], token_ids=(9, 9)), *data[1:]]):
        with pytest.raises(DataError, match="not those that the checkpoint was trained on"):
            PromptSource(other, batch_size=2, seed=1).restore(state)
    with pytest.raises(DataError, match="seed 1 and this run has 2"):
        PromptSource(data, batch_size=2, seed=2).restore(state)
    with pytest.raises(DataError, match="no prompts"):
        PromptSource([], batch_size=2)
