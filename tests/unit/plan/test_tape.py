"""Autograd in bytes: little programs whose live memory can be counted by hand."""

from __future__ import annotations

import pytest

from openrlhf_ext.plan.operations import Operations
from openrlhf_ext.plan.tape import Block, Parameter, Value

N = 1000
"""Bytes of a tensor here: numbers of one byte."""


def recording(*, in_place: bool = True) -> Operations:
    ops = Operations(in_place=in_place)
    ops.mode = "record"
    return ops


def leaf(ops: Operations) -> Value:
    """An input through which gradients flow to a parameter that is not counted."""
    x = ops.new(N, 1)
    return ops.link(x, [Parameter(0, 1, True)], lambda grad: ())


def top(ops: Operations, direction: str) -> int:
    return max(sum(kinds.values()) for (way, _), kinds in ops.ledger.peaks.items() if way == direction)


def test_what_nobody_holds_is_gone():
    ops = Operations()
    x = ops.new(N, 1)
    y = ops.times(x)
    assert ops.ledger.total == 2 * N
    del x, y
    assert ops.ledger.total == 0 and top(ops, "forward") == 2 * N


def test_saved_tensors_stay_until_their_operation_is_gone_back_through():
    ops = recording()
    y = leaf(ops)
    for _ in range(3):
        y = ops.activation(y)
    assert ops.ledger.total == 4 * N  # three saved inputs and the result
    ops.backward(y)
    # The last saved input, its gradient, and of the others the inputs: nothing is freed before it is used.
    assert top(ops, "backward") == 5 * N
    assert ops.ledger.total == N


def test_a_frozen_weight_saves_no_input():
    for trained, live in ((True, 3 * N), (False, 2 * N)):
        ops = recording()
        y = ops.linear(ops.linear(leaf(ops), Parameter(100, 1, trained), 10), Parameter(100, 1, trained), 10)
        assert ops.ledger.total == live - (0 if trained else N)
        del y


@pytest.mark.parametrize(("in_place", "peak"), [(True, 2), (False, 3)])
def test_gradients_that_meet_are_added(in_place, peak):
    ops = recording(in_place=in_place)
    x = leaf(ops)
    both = ops.add(ops.times(x), ops.times(x))
    x.block = both.block = None
    ops.backward(both)
    assert top(ops, "backward") == peak * N


def test_a_parameter_has_its_gradient_when_all_uses_have_added_to_it():
    ops, weight, arrived = recording(), Parameter(100, 1, True), []
    ops.on_gradient = lambda parameter, block: arrived.append((parameter, block.nbytes))
    x = leaf(ops)
    ops.backward(ops.add(ops.linear(x, weight, 10), ops.linear(x, weight, 10)))
    assert arrived[0] == (weight, 100) and [parameter for parameter, _ in arrived].count(weight) == 1


def program(ops: Operations):
    weights = [Parameter(100, 1, True) for _ in range(4)]

    def run(x: Value) -> Value:
        for weight in weights:
            x = ops.activation(ops.linear(x, weight, 10))
        return x

    return run


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_part_keeps_its_input_alone(reentrant):
    plain, saving = recording(), recording()
    full = program(plain)(leaf(plain))
    kept = saving.checkpoint(program(saving), leaf(saving), reentrant=reentrant)
    assert plain.ledger.total == 9 * N and saving.ledger.total == 2 * N
    plain.backward(full)
    saving.backward(kept)
    assert plain.ledger.total == saving.ledger.total == N


def test_a_part_that_is_recomputed_stops_at_its_last_saved_tensor():
    def last_saves_nothing(ops: Operations):
        return lambda x: ops.times(ops.activation(x))

    peaks = []
    for reentrant in (False, True):
        ops = recording()
        y = ops.checkpoint(last_saves_nothing(ops), leaf(ops), reentrant=reentrant)
        ops.backward(y)
        peaks.append(top(ops, "backward"))
    assert peaks[0] < peaks[1]


def test_moments_are_told_apart():
    ops = Operations()
    ops.ledger.at("first")
    big = ops.new(3 * N, 1)
    del big
    ops.ledger.at("second")
    with ops.ledger.kept_as("logits"):
        small = ops.new(N, 1)
    assert ops.ledger.peaks["forward", "first"] == {"activations": 3 * N}
    assert ops.ledger.peaks["forward", "second"] == {"activations": 0, "logits": N}
    assert isinstance(small.block, Block)
