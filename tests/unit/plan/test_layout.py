"""Where processes sit: every bundle once, engines whole, ranks packed, and a sentence where there is no room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.plan.layout import Demand, Layout, Node, Seat, lay_out, pools_of


def nodes(*devices: int) -> list[Node]:
    return [Node(f"node {number}", count) for number, count in enumerate(devices, 1)]


def where(layout: Layout, role: str) -> list[int]:
    """The node of each process of a role."""
    return [seat.node for demand in layout.demands if demand.role == role for seat in layout.seats(demand)]


def test_ranks_fill_node_after_node_in_order():
    layout = lay_out([Demand("model", "model", 16)], nodes(8, 8), gpu=True)
    assert where(layout, "model") == [0] * 8 + [1] * 8
    assert layout.bundles["model"][9] == Seat(1, (1,))


def test_a_group_goes_whole_to_the_tightest_node_that_holds_it():
    demands = [Demand("actor", "actor", 4), Demand("ref", "ref", 2), Demand("vllm", "vllm", 8)]
    layout = lay_out(demands, nodes(8, 4, 2), gpu=True)
    assert (where(layout, "actor"), where(layout, "ref"), where(layout, "vllm")) == ([1] * 4, [2] * 2, [0] * 8)


def test_a_group_that_no_node_holds_takes_as_few_as_it_can():
    layout = lay_out([Demand("actor", "actor", 10)], nodes(2, 8, 4, 8), gpu=True)
    assert where(layout, "actor") == [1] * 8 + [0] * 2  # the rest goes where it just fits


def test_roles_of_a_pool_sit_together():
    demands = [Demand("actor", "all", 4), Demand("ref", "all", 4), Demand("vllm", "all", 3)]
    layout = lay_out(demands, nodes(2, 2), gpu=True)
    assert layout.sitting(0, 1) == [("actor", 1), ("ref", 1), ("vllm", 1)]
    assert layout.sitting(1, 1) == [("actor", 3), ("ref", 3)]
    assert layout.hosts("vllm") == ["node 1", "node 2"]


def test_engines_that_find_no_node_are_seated_before_the_ranks():
    demands = [Demand("actor", "actor", 6), Demand("ref", "ref", 6), Demand("vllm", "vllm", 1, 4)]
    layout = lay_out(demands, nodes(8, 8), gpu=True)
    (engine,) = layout.bundles["vllm"]
    assert len(engine.devices) == 4
    assert len(set(where(layout, "actor"))) == 1, "the ranks are still packed where they can be"


def test_a_process_on_a_cpu_takes_one_slot():
    layout = lay_out([Demand("actor", "actor", 1), Demand("vllm", "vllm", 2, 4)], nodes(3), gpu=False)
    assert [seat.devices for seat in layout.bundles["vllm"]] == [(1,), (2,)]


@pytest.mark.parametrize(
    ("demands", "there", "sentence"),
    [
        (
            [Demand("actor", "actor", 4), Demand("vllm", "vllm", 2, 4)], (8,),
            "The roles ask for 12 GPUs (actor 4 x 1, vllm 2 x 4) and there are 8: lower --actor.num_gpus_per_node or "
            "--vllm.num_engines, share with --train.colocate_all, or add nodes.",
        ),
        (
            [Demand("model", "model", 4)], (2, 1),
            "The roles ask for 4 GPUs (model 4 x 1) and there are 3: lower --model.num_gpus_per_node, or add nodes.",
        ),
        (
            [Demand("actor", "actor", 1), Demand("vllm", "vllm", 1, 4)], (2, 2, 2),
            "One engine asks for 4 GPUs on one node and the largest node has 2: lower --vllm.tensor_parallel_size.",
        ),
        (
            [Demand("actor", "actor", 1), Demand("vllm", "vllm", 2, 3)], (4, 4, 1),
            None,
        ),
        (
            [Demand("actor", "actor", 2), Demand("vllm", "vllm", 2, 3)], (4, 2, 2),
            "actor 2 x 1, vllm 2 x 3 cannot be placed on nodes of 4, 2, 2: an engine of 3 GPUs takes them from one "
            "node, and beside the others none has as many left; lower --vllm.tensor_parallel_size or "
            "--vllm.num_engines, share with --train.colocate_all, or add nodes.",
        ),
    ],
    ids=["too few", "too few for one role", "no node as large", "fits", "in pieces"],
)  # fmt: skip
def test_what_cannot_be_placed_is_a_sentence(demands: list[Demand], there: tuple[int, ...], sentence: str | None):
    if sentence is None:
        lay_out(demands, nodes(*there), gpu=True)
        return
    with pytest.raises(ResourceError) as raised:
        lay_out(demands, nodes(*there), gpu=True)
    assert str(raised.value) == sentence


@given(
    there=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    engines=st.integers(1, 4),
    tensor_parallel=st.sampled_from([1, 2, 4]),
)
def test_no_device_is_given_twice_and_no_engine_is_split(
    there: list[int], ranks: list[int], engines: int, tensor_parallel: int
):
    demands = [Demand(f"role {number}", f"pool {number}", count) for number, count in enumerate(ranks)]
    demands.append(Demand("vllm", "vllm", engines, tensor_parallel))
    try:
        layout = lay_out(demands, nodes(*there), gpu=True)
    except ResourceError:
        # Engines seated first find every group of GPUs that a node has; then ranks fit wherever GPUs are left.
        short = sum(ranks) + engines * tensor_parallel > sum(there)
        assert short or sum(count // tensor_parallel for count in there) < engines
        return
    taken = [(seat.node, device) for seats in layout.bundles.values() for seat in seats for device in seat.devices]
    assert len(taken) == len(set(taken))
    assert all(device < there[node] for node, device in taken)
    assert {name: len(seats) for name, seats in layout.bundles.items()} == {
        name: pool.bundles for name, pool in pools_of(demands, gpu=True).items()
    }
    assert all(len(seat.devices) == tensor_parallel for seat in layout.bundles["vllm"])
