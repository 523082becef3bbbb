"""The device: what there is, what is asked for, and what defaults become on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openrlhf_ext.cli.checks.finding import Finding, error, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import ResourceError, UserError

if TYPE_CHECKING:
    from openrlhf_ext.plan.layout import Demand, Layout

AREA = "device"
RAY = "ray"
FULL_ALREADY = 0.1
"""A GPU of which others hold more than this part is probably not meant to be shared."""


def find_device(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.device.cards import HIDE, cards_here

    config = subject.config
    try:
        subject.device = choose_device(config.device.type)
    except ResourceError as raised:
        yield of_error(AREA, raised)
        subject.device = choose_device("cpu")  # so that the rest can be checked
        return
    if not subject.device.count:
        yield ok(AREA, "models run on this CPU")
        if subject.command == "rl":
            from openrlhf_ext.rollout.engine_start import need_libnuma

            need_libnuma()
        return
    try:
        cards = cards_here()
    except ResourceError as raised:  # a container may lack the tool
        yield of_error(AREA, raised, level="warning")
        cards = []
    for card in cards:
        used = card.bytes - card.free
        room = f"{card.free / 1e9:.1f} of {card.bytes / 1e9:.1f} GB free"
        text = f"GPU {card.index}, {card.name} (driver {card.driver}): {room}"
        if used > FULL_ALREADY * card.bytes:
            yield warning(AREA, f"{text}, others hold the rest", f"see nvidia-smi, and end them or {HIDE}.")
        else:
            yield ok(AREA, text)
    if not subject.device.can("bf16") and config.ds.param_dtype == "bf16":
        yield warning(
            AREA,
            "--ds.param_dtype bf16 is emulated on a GPU of before Ampere, slowly",
            "give --ds.param_dtype fp16.",
        )


def find_ranks(subject: Subject) -> Iterator[Finding]:
    """GPUs that the roles ask for against those that there are."""
    if subject.command == "rl":
        yield from _roles(subject)
        return
    there, asked = subject.device.count, subject.config.model.num_gpus_per_node
    ranks = asked * subject.config.model.num_nodes
    if 0 < there < asked and subject.config.ray.address is None:
        yield error(
            AREA,
            f"--model.num_gpus_per_node {asked} asks for more GPUs than the {there} of this machine",
            f"give --model.num_gpus_per_node {there}, and a batch that they share evenly.",
        )
    elif ranks > 1:
        from openrlhf_ext.cli.specs import model_path
        from openrlhf_ext.plan.layout import Demand

        yield ok(AREA, f"{asked} ranks on each machine")
        files = {"model": [model_path(subject.config.model.model_name_or_path)]}
        yield from _room(subject, [Demand("model", "model", ranks)], files)


def _roles(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.cli.rl_roles import Schedule, roles_spec

    spec = roles_spec(subject.parsed, subject.device, Schedule(1, 1))
    demands = spec.demands()
    wish = ", ".join(f"{demand.role} {demand.processes} x {demand.devices} ({demand.pool})" for demand in demands)
    yield ok(AREA, f"processes of each role x devices of each (whose devices): {wish}")
    yield from _room(subject, demands, spec.files())


def _room(subject: Subject, demands: Sequence[Demand], files: Mapping[Any, Sequence[str]]) -> Iterator[Finding]:
    """Raises UserError as the start of the run would, on the cluster or on this machine."""
    from openrlhf_ext.plan.layout import Node, lay_out

    device, ray = subject.device, subject.config.ray
    if ray.address is None:
        if device.count:
            lay_out(demands, [Node(HERE, device.count)], gpu=True)
        return
    unit = "GPU" if device.count else "CPU"
    paths = list(dict.fromkeys(path for read in files.values() for path in read if os.path.isabs(path)))
    there = _cluster(ray.address, ray.bind, paths)
    nodes = [Node(node["name"], node[unit]) for node in there]
    total, largest = sum(node.devices for node in nodes), max(node.devices for node in nodes)
    yield ok(RAY, f"the cluster at {ray.address} has {total} {unit}s, {largest} on one node")
    layout = lay_out(demands, nodes, gpu=device.count > 0)
    yield from _files(files, layout, {node["name"]: node["marks"] for node in there}, paths)


def _files(
    files: Mapping[Any, Sequence[str]], layout: Layout, marks: Mapping[str, Any], paths: Sequence[str]
) -> Iterator[Finding]:
    """Raises DataError where a node that will host a role lacks what it reads."""
    from openrlhf_ext.plan.layout import SPOKEN
    from openrlhf_ext.track.same_files import Need, check_same, content_marks

    needs = [
        Need(path, SPOKEN.get(role, role), tuple(layout.hosts(role)))
        for role, read in files.items()
        for path in read
        if path in paths
    ]
    if not needs:
        return
    check_same(needs, {**marks, HERE: content_marks(paths)}, here=HERE)
    hosts = sorted({node for need in needs for node in need.nodes})
    yield ok(RAY, f"the same files as here on {', '.join(hosts)}: {', '.join(paths)}")


LOOK_S = 9.0
HERE = "this machine"


def _cluster(address: str, bind: str, paths: Sequence[str]) -> list[dict[str, Any]]:
    """The nodes of a cluster (`cluster.look`), asked for by a process of its own, for Ray may try for minutes."""
    command = [sys.executable, "-m", "openrlhf_ext.cluster.look", address, bind, *paths]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the Ray cluster at {address} did not tell its resources within {LOOK_S:g} s: see `ray status` there."
        ) from None
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["the Ray cluster cannot be asked"])[-1])
    nodes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return nodes
