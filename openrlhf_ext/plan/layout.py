"""Which process sits on which GPU of which node: decided here, drawn by `plan`, and reserved by `cluster.placement`.

The policy: pools are seated in the order of their demands, the ranks of models before engines. A pool goes to as few
nodes as hold it, to the tightest of those that hold all of it, ranks in order; so the ranks of one ZeRO group are
packed. The GPUs of one engine are on one node. Where engines of several GPUs then find no node with as many left,
they are seated first, and the ranks around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.plan.processes import with_process
from openrlhf_ext.plan.setup_rl import ROLES
from openrlhf_ext.plan.types import Setup

ENGINES = ("vllm", "judge")
"""Roles whose processes are engines, each with as many devices as it likes."""


SPOKEN: Mapping[str, str] = {**{str(section): str(role) for section, role in ROLES.items()}, "vllm": "engines"}
"""What a role is called where its flags' name is not its own."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`processes` processes of one role, each with `devices` GPUs (or CPU slots). Roles with the same `pool` share.

    A role goes by the name of its flags.
    """

    role: str
    pool: str
    processes: int
    devices: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """A machine and how many GPUs, or processes on a CPU, it has room for."""

    name: str
    devices: int


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one bundle: the node's index, and which of its devices (a count, not the driver's numbers)."""

    node: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The bundles of each pool, in order: process i of a role sits on bundle i of its pool."""

    nodes: tuple[Node, ...]
    demands: tuple[Demand, ...]
    bundles: Mapping[str, tuple[Seat, ...]]

    def seats(self, demand: Demand) -> tuple[Seat, ...]:
        return self.bundles[demand.pool][: demand.processes]

    def sitting(self, node: int, device: int) -> list[tuple[str, int]]:
        """Role and number of each process on a device."""
        return [
            (demand.role, process)
            for demand in self.demands
            for process, seat in enumerate(self.seats(demand))
            if seat.node == node and device in seat.devices
        ]

    def hosts(self, role: str) -> list[str]:
        """The nodes that have a process of the role, in the order of the cluster."""
        used = {seat.node for demand in self.demands if demand.role == role for seat in self.seats(demand)}
        return [self.nodes[index].name for index in sorted(used)]


@dataclass(frozen=True, slots=True)
class Pool:
    """So many bundles of so many devices each."""

    bundles: int
    devices: int


def pools_of(demands: Sequence[Demand], *, gpu: bool) -> dict[str, Pool]:
    """What the roles of each pool share. A process on a CPU takes one slot, whatever it would take of GPUs."""
    pools: dict[str, list[Demand]] = {}
    for demand in demands:
        pools.setdefault(demand.pool, []).append(demand)
    found = {}
    for name, members in pools.items():
        sizes = {member.devices for member in members}
        assert len(sizes) == 1, "the roles of one pool take equal shares of equal bundles"
        found[name] = Pool(max(member.processes for member in members), sizes.pop() if gpu else 1)
    return found


def lay_out(demands: Sequence[Demand], nodes: Sequence[Node], *, gpu: bool) -> Layout:
    """A seat for every process.

    Raises:
        ResourceError: there are fewer devices in all, no node is large enough for an engine, or none has enough left
            beside the others.
    """
    pools = pools_of(demands, gpu=gpu)
    check_room(demands, nodes, gpu=gpu)
    in_order = list(pools)
    for order in (in_order, sorted(in_order, key=lambda name: -pools[name].devices)):
        bundles, left = _seated({name: pools[name] for name in order}, nodes)
        if left is None:
            return Layout(tuple(nodes), tuple(demands), bundles)
    assert left is not None
    devices = pools[left].devices
    engines = [demand.role for demand in demands if demand.pool == left]
    raise ResourceError(
        f"{_wish(demands)} cannot be placed on {_listed(nodes)}: an engine of {devices} GPUs takes them from one node, "
        f"and beside the others none has as many left; lower --{engines[0]}.tensor_parallel_size or "
        f"--{engines[0]}.num_engines, share with --train.colocate_all, or add nodes."
    )


def _seated(pools: Mapping[str, Pool], nodes: Sequence[Node]) -> tuple[dict[str, tuple[Seat, ...]], str | None]:
    """The seats, and the pool for which there was no more room."""
    free = [list(range(node.devices)) for node in nodes]
    bundles: dict[str, tuple[Seat, ...]] = {}
    for name, pool in pools.items():
        seats: list[Seat] = []
        while (left := pool.bundles - len(seats)) > 0:
            room = [len(devices) // pool.devices for devices in free]
            whole = [index for index, bundled in enumerate(room) if bundled >= left]
            node = min(whole, key=lambda i: len(free[i])) if whole else max(range(len(room)), key=room.__getitem__)
            if not room[node]:
                return bundles, name
            for _ in range(min(room[node], left)):
                seats.append(Seat(node, tuple(free[node][: pool.devices])))
                del free[node][: pool.devices]
        bundles[name] = tuple(seats)
    return bundles, None


def check_room(demands: Sequence[Demand], nodes: Sequence[Node], *, gpu: bool) -> None:
    """Raises ResourceError where the demands ask for more than there is in all, or one process for more than a node."""
    pools, unit = pools_of(demands, gpu=gpu), "GPU" if gpu else "CPU"
    asked, total = sum(pool.bundles * pool.devices for pool in pools.values()), sum(node.devices for node in nodes)
    if asked > total:
        ranks = ", ".join(f"--{d.role}.num_gpus_per_node" for d in demands if d.role not in ENGINES)
        engines = " or ".join(f"--{d.role}.num_engines" for d in demands if d.role in ENGINES)
        lower = " or ".join(part for part in (ranks, engines) if part)
        share = ", share with --train.colocate_all" if len(pools) > 1 else ""
        there = f"there {'is' if total == 1 else 'are'} {total}"
        raise ResourceError(
            f"The roles ask for {asked} {unit}s ({_wish(demands)}) and {there}: lower {lower}{share}, or add nodes."
        )
    largest, room = max(pool.devices for pool in pools.values()), max((node.devices for node in nodes), default=0)
    if largest > room:
        flags = [f"--{d.role}.tensor_parallel_size" for d in demands if d.devices == largest]
        raise ResourceError(
            f"One engine asks for {largest} {unit}s on one node and the largest node has {room}: lower "
            f"{' or '.join(flags)}."
        )


def _wish(demands: Sequence[Demand]) -> str:
    return ", ".join(f"{demand.role} {demand.processes} x {demand.devices}" for demand in demands)


def _listed(nodes: Sequence[Node]) -> str:
    sizes = {node.devices for node in nodes}
    if len(sizes) == 1:
        return f"{len(nodes)} node{'s' * (len(nodes) > 1)} of {sizes.pop()}"
    return f"nodes of {', '.join(str(node.devices) for node in nodes)}"


def layout_of(setup: Setup) -> Layout:
    """What a plan draws. Raises ResourceError as the start of the run does."""
    demands, hardware = demands_of(setup), setup.hardware
    per_node = hardware.count
    if not hardware.on_gpu:  # as many slots as it takes: processes on a CPU take turns
        slots = sum(pool.bundles for pool in pools_of(demands, gpu=False).values())
        per_node = -(-slots // hardware.nodes)
    nodes = [Node(f"node {number}", per_node) for number in range(1, hardware.nodes + 1)]
    return lay_out(demands, nodes, gpu=hardware.on_gpu)


def demands_of(setup: Setup) -> list[Demand]:
    """As `cluster.build.RolesSpec.demands` has it, and `cluster.supervised`."""
    flags = {role: section for section, role in SPOKEN.items()}
    models = [Demand(flags.get(run.role, run.role), run.pool, run.ranks) for run in with_process(setup)]
    return models + [
        Demand(flags.get(run.role, run.role), run.pool, run.count, run.tensor_parallel) for run in setup.engines
    ]
