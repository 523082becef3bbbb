"""Which process runs where: roles share pools of bundles, and a bundle is one GPU (or one CPU process).

A role that cannot be placed is an error before anything is started: what was asked for, what the
cluster has, and what to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.track.progress import waiting

ENGINES = ("vllm", "judge")
"""Roles whose processes are engines, each with as many devices as it likes."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`processes` processes of one role, each with `devices` GPUs (or CPU slots). Roles with the same `pool` share."""

    role: str
    pool: str
    processes: int
    devices: int = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one process runs, and its share of the bundle."""

    group: PlacementGroup
    bundle: int
    cpus: float
    gpus: float

    @property
    def options(self) -> dict[str, object]:
        """Actor options that put a process here."""
        strategy = PlacementGroupSchedulingStrategy(
            self.group, placement_group_bundle_index=self.bundle, placement_group_capture_child_tasks=True
        )
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


def bundles_of(demands: Sequence[Demand], gpu: bool) -> dict[str, list[dict[str, float]]]:
    """The bundles of every pool. A CPU process takes one logical CPU; a GPU comes with one."""
    pools: dict[str, list[Demand]] = {}
    for demand in demands:
        pools.setdefault(demand.pool, []).append(demand)
    bundles = {}
    for pool, members in pools.items():
        sizes = {member.devices for member in members}
        assert len(sizes) == 1, "the roles of one pool take equal shares of equal bundles"
        devices = float(sizes.pop())
        bundle = {"CPU": devices, "GPU": devices} if gpu else {"CPU": 1.0}
        bundles[pool] = [bundle] * max(member.processes for member in members)
    return bundles


def reserve(demands: Sequence[Demand], *, gpu: bool) -> dict[str, list[Slot]]:
    """Reserve all bundles and return each role's slots, rank by rank.

    Raises:
        ResourceError: the cluster has less than that in all, or no node that is large enough.
    """
    bundles = bundles_of(demands, gpu)
    unit = "GPU" if gpu else "CPU"
    largest_node = max((node["Resources"].get(unit, 0) for node in ray.nodes() if node["Alive"]), default=0)
    check_room(demands, unit, ray.cluster_resources().get(unit, 0), largest_node)
    groups = {pool: placement_group(list(content), strategy="PACK") for pool, content in bundles.items()}
    free = ray.available_resources().get(unit, 0)
    asked = sum(bundle[unit] for content in bundles.values() for bundle in content)
    with waiting(f"{asked:g} {unit}s ({free:g} are free now)"):
        ray.get([group.ready() for group in groups.values()])
    sharing: Mapping[str, int] = {pool: sum(d.pool == pool for d in demands) for pool in bundles}
    slots = {}
    for demand in demands:
        bundle = bundles[demand.pool][0]
        share = sharing[demand.pool]
        cpus, gpus = bundle["CPU"] / share, bundle.get("GPU", 0.0) / share
        slots[demand.role] = [Slot(groups[demand.pool], i, cpus, gpus) for i in range(demand.processes)]
    return slots


def check_room(demands: Sequence[Demand], unit: str, total: float, largest_node: float) -> None:
    """`unit` is GPU or CPU, `total` how many a cluster has, `largest_node` how many its largest node.

    Raises:
        ResourceError: the demands ask for more in all, or one of their processes for more than a node has.
    """
    bundles = bundles_of(demands, gpu=unit == "GPU")
    asked = sum(bundle[unit] for content in bundles.values() for bundle in content)
    largest_bundle = max(bundle[unit] for content in bundles.values() for bundle in content)
    wish = ", ".join(f"{d.role} {d.processes} x {d.devices}" for d in demands)
    ranks = ", ".join(f"--{d.role}.num_gpus_per_node" for d in demands if d.role not in ENGINES)
    engines = " or ".join(f"--{d.role}.num_engines" for d in demands if d.role in ENGINES)
    if asked > total:
        raise ResourceError(
            f"The roles ask for {asked:g} {unit}s ({wish}) and the cluster has {total:g}: lower {ranks} or "
            f"{engines}, share with --train.colocate_all, or add nodes."
        )
    if largest_bundle > largest_node:
        raise ResourceError(
            f"One engine asks for {largest_bundle:g} {unit}s on one node and the largest node has {largest_node:g}: "
            f"lower {' or '.join(f'--{d.role}.tensor_parallel_size' for d in demands if d.devices == largest_bundle)}."
        )
