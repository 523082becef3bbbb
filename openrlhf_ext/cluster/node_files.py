"""Every node of the cluster that will host a role is asked for the files that it reads, before any of them loads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_ext.cluster.placement import Slot
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.plan.layout import SPOKEN
from openrlhf_ext.track.same_files import Need, check_same, content_marks


def check_files(readers: Mapping[Any, Iterable[str]], slots: Mapping[str, Sequence[Slot]]) -> None:
    """`readers`: the paths that each role reads, hub names among them; `slots`: where its processes will be.

    Raises DataError where a node lacks a path or has other files there than the driver's node.
    """
    own = ray.get_runtime_context().get_node_id()
    used = sorted({slot.node for role in readers for slot in slots[role]} - {own})
    if not used:
        return
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    needs = [
        Need(path, SPOKEN.get(role, role), tuple(dict.fromkeys(hosts[slot.node] for slot in slots[role])))
        for role, paths in readers.items()
        for path in paths
        if os.path.isabs(path)
    ]
    paths = list(dict.fromkeys(need.path for need in needs))
    marks = {hosts[node]: answer for node, answer in marks_on(used, paths).items()}
    check_same(needs, {hosts[own]: content_marks(paths), **marks}, here=hosts[own])


def marks_on(nodes: Sequence[str], paths: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """What each node (by Ray's id) says of the paths: one small task on each."""
    look = ray.remote(num_cpus=0)(content_marks)
    calls = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths)
        for node in nodes
    ]
    return dict(zip(nodes, gather(calls, f"{len(nodes)} nodes to look for the files of the run"), strict=True))
