"""Reserving what `plan.layout` decided: roles share pools of bundles, and a bundle is one GPU (or one CPU process).

A role that cannot be placed is an error before anything is started: what was asked for, what the
cluster has, and what to change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.plan.layout import Demand, Layout, Node, lay_out, pools_of
from openrlhf_ext.track.progress import waiting

NODE_ID = "ray.io/node-id"
"""The label by which Ray knows a node."""
READY_S = 10.0
"""Bundles that were free a moment ago and are not ours within this time went to somebody else."""
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one process runs, and its share of the bundle. `node` is Ray's id of the node."""

    group: PlacementGroup
    bundle: int
    cpus: float
    gpus: float
    node: str

    @property
    def options(self) -> dict[str, object]:
        """Actor options that put a process here."""
        strategy = PlacementGroupSchedulingStrategy(
            self.group, placement_group_bundle_index=self.bundle, placement_group_capture_child_tasks=True
        )
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


def bundles_of(demands: Sequence[Demand], gpu: bool) -> dict[str, list[dict[str, float]]]:
    """The bundles of every pool. A CPU process takes one logical CPU; a GPU comes with one."""
    return {
        name: [{unit: float(pool.devices) for unit in units_of(gpu)}] * pool.bundles
        for name, pool in pools_of(demands, gpu=gpu).items()
    }


def units_of(gpu: bool) -> tuple[str, ...]:
    return ("CPU", "GPU") if gpu else ("CPU",)


def reserve(demands: Sequence[Demand], *, gpu: bool) -> dict[str, list[Slot]]:
    """Reserve all bundles at once and return each role's slots, rank by rank.

    They are one placement group, so that two runs that wait for each other's half do not happen; each of its bundles
    is bound to the node that the layout gives it.

    Raises:
        ResourceError: the cluster has less than that in all, or no nodes that could hold it if they were empty.
    """
    ids, nodes = nodes_now(gpu)
    lay_out(demands, nodes, gpu=gpu)
    free = sum(node.devices for node in nodes_now(gpu, free=True)[1])
    asked = sum(pool.bundles * pool.devices for pool in pools_of(demands, gpu=gpu).values())
    with waiting(f"{asked} {units_of(gpu)[-1]}s ({free} are free now)"):
        while True:
            ids, nodes = nodes_now(gpu, free=True)
            try:
                layout = lay_out(demands, nodes, gpu=gpu)
            except ResourceError:  # there is enough of it, but others use it
                time.sleep(LOOK_AGAIN_S)
                continue
            if (group := _taken(layout, ids, gpu)) is not None:
                return _slots(layout, ids, group, gpu)


def nodes_now(gpu: bool, *, free: bool = False) -> tuple[list[str], list[Node]]:
    """Ray's ids of the nodes that are alive, and the nodes with what they have, or what is `free` of it."""
    there = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeManagerHostname"])
    left = available_resources_per_node() if free else {}
    ids, nodes = [], []
    for node in there:
        resources = left.get(node["NodeID"], {}) if free else node["Resources"]
        ids.append(node["NodeID"])
        devices = min(int(resources.get(unit, 0)) for unit in units_of(gpu))
        nodes.append(Node(node["NodeManagerHostname"], devices))
    return ids, nodes


def _taken(layout: Layout, ids: Sequence[str], gpu: bool) -> PlacementGroup | None:
    """The bundles, pool by pool; None where somebody was faster."""
    contents = bundles_of(layout.demands, gpu)
    bundles = [bundle for pool in layout.bundles for bundle in contents[pool]]
    labels = [{NODE_ID: ids[seat.node]} for seats in layout.bundles.values() for seat in seats]
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
    if group.wait(READY_S):
        return group
    remove_placement_group(group)
    return None


def _slots(layout: Layout, ids: Sequence[str], group: PlacementGroup, gpu: bool) -> dict[str, list[Slot]]:
    first, starts = 0, {}
    for pool, seats in layout.bundles.items():
        starts[pool], first = first, first + len(seats)
    sharing: Mapping[str, int] = {pool: sum(d.pool == pool for d in layout.demands) for pool in layout.bundles}
    contents = bundles_of(layout.demands, gpu)
    slots = {}
    for demand in layout.demands:
        bundle, share = contents[demand.pool][0], sharing[demand.pool]
        cpus, gpus = bundle["CPU"] / share, bundle.get("GPU", 0.0) / share
        slots[demand.role] = [
            Slot(group, starts[demand.pool] + index, cpus, gpus, ids[seat.node])
            for index, seat in enumerate(layout.seats(demand))
        ]
    return slots
