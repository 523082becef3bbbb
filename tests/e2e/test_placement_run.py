"""What the planner draws is what a real Ray reserves: a cluster of nodes with GPUs that are only declared."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from openrlhf_ext.cluster.placement import Slot, nodes_now, reserve
from openrlhf_ext.errors import ResourceError
from openrlhf_ext.plan.layout import Demand, Node, lay_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
GPUS = (4, 4, 2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    for count in GPUS:
        started.add_node(num_cpus=4, num_gpus=count, object_store_memory=100 << 20)
    ray.init(address=started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


LAYOUTS = {
    "ranks over two nodes": [Demand("actor", "actor", 6), Demand("vllm", "vllm", 1, 2)],
    "each group on a node": [Demand("actor", "actor", 4), Demand("ref", "ref", 2), Demand("vllm", "vllm", 1, 4)],
    "all on all": [Demand("actor", "all", 10), Demand("ref", "all", 10), Demand("vllm", "all", 10)],
    "engines around which ranks sit": [
        Demand("actor", "actor", 3), Demand("ref", "ref", 3), Demand("vllm", "vllm", 2, 2)
    ],
}  # fmt: skip


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("demands", LAYOUTS.values(), ids=LAYOUTS)
def test_bundles_are_where_the_layout_has_them(demands: list[Demand]) -> None:
    ids, nodes = nodes_now(gpu=True)
    assert sorted(node.devices for node in nodes) == sorted(GPUS)
    drawn = lay_out(demands, nodes, gpu=True)
    slots = reserve(demands, gpu=True)
    try:
        table = placement_group_table(group_of(slots))
        for demand in demands:
            there = [table["bundles_to_node_id"][slot.bundle] for slot in slots[demand.role]]
            if demand.pool == "all":  # whoever shares a GPU by handles is on it, and never on another node
                assert [slot.bundle for slot in slots[demand.role]] == [slot.bundle for slot in slots["actor"]]
            assert there == [slot.node for slot in slots[demand.role]]
            assert there == [ids[seat.node] for seat in drawn.seats(demand)]
    finally:
        give_back(slots)


@pytest.mark.usefixtures("cluster")
def test_processes_are_on_the_nodes_of_their_slots_and_an_engine_has_its_gpus_there() -> None:
    @ray.remote
    class Process:
        def where(self) -> tuple[str, int]:
            return ray.get_runtime_context().get_node_id(), len(ray.get_runtime_context().get_accelerator_ids()["GPU"])

    slots = reserve([Demand("actor", "shared", 5), Demand("ref", "shared", 5), Demand("vllm", "vllm", 1, 4)], gpu=True)
    try:
        started = {role: [Process.options(**slot.options).remote() for slot in own] for role, own in slots.items()}
        for role, processes in started.items():
            answers = ray.get([process.where.remote() for process in processes])
            assert [node for node, _ in answers] == [slot.node for slot in slots[role]]
            assert {count for _, count in answers} == {4 if role == "vllm" else 1}
    finally:
        give_back(slots)


@pytest.mark.usefixtures("cluster")
def test_what_others_use_is_left_to_them() -> None:
    ids, nodes = nodes_now(gpu=True)
    large = next(place for place, node in enumerate(nodes) if node.devices == 4)
    others = placement_group([{"GPU": 3, "CPU": 3}], bundle_label_selector=[{"ray.io/node-id": ids[large]}])
    assert others.wait(30)
    try:
        free = [Node(node.name, node.devices - 3 * (place == large)) for place, node in enumerate(nodes)]
        demands = [Demand("actor", "actor", 4), Demand("ref", "ref", 2)]
        slots = reserve(demands, gpu=True)
        try:
            drawn = lay_out(demands, free, gpu=True)
            assert [slot.node for slot in slots["actor"]] == [ids[seat.node] for seat in drawn.seats(demands[0])]
            assert Counter(slot.node for slot in slots["actor"]).most_common() != [(ids[large], 4)]
        finally:
            give_back(slots, others=3)
    finally:
        remove_placement_group(others)


@pytest.mark.usefixtures("cluster")
def test_what_no_empty_cluster_could_hold_is_refused_at_once() -> None:
    with pytest.raises(ResourceError, match=r"cannot be placed on nodes of .* --vllm.tensor_parallel_size"):
        reserve([Demand("vllm", "vllm", 3, 3)], gpu=True)
    assert ray.available_resources()["GPU"] == sum(GPUS), "and nothing of it is held"


def group_of(slots: dict[str, list[Slot]]) -> Any:
    return next(slot.group for own in slots.values() for slot in own)


def give_back(slots: dict[str, list[Slot]], others: int = 0) -> None:
    groups: Sequence[Any] = list({slot.group.id: slot.group for own in slots.values() for slot in own}.values())
    assert len(groups) == 1, "all or nothing"
    remove_placement_group(groups[0])
    while ray.available_resources().get("GPU", 0) < sum(GPUS) - others:
        time.sleep(0.1)
