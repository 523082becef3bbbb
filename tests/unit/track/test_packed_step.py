from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from test_rollout_files import recorded_steps, simple

from openrlhf_ext.batch.packed import PackedRollouts
from openrlhf_ext.track.packed_step import PackedStep
from openrlhf_ext.track.rollouts import RecordedStep


@settings(max_examples=30, deadline=None)
@given(step=recorded_steps())
def test_a_step_comes_out_as_it_went_in(step: RecordedStep) -> None:
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(PackedStep.of(step), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 4, "a few arrays, however many rollouts there are"
    assert pickle.loads(sent, buffers=buffers).unpacked() == step


def test_what_comes_out_are_views_that_cannot_be_written_to() -> None:
    rollout = simple().members[0].rollout
    packed = PackedRollouts.of([rollout, rollout])
    assert list(packed) == [rollout, rollout] and len(packed) == 2
    for column, name in zip(packed.columns, ("token_ids", "action_mask", "logprobs"), strict=True):
        assert all(np.shares_memory(getattr(each, name), column) for each in packed)
    with pytest.raises(ValueError, match="read-only"):
        next(iter(packed)).token_ids[0] = 7


def test_no_rollouts() -> None:
    assert list(PackedRollouts.of([])) == []
    assert PackedStep.of(RecordedStep(1, ())).unpacked() == RecordedStep(1, ())
