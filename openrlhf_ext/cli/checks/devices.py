"""The device: what there is, what is asked for, and what defaults become on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from openrlhf_ext.cli.checks.finding import Finding, error, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import ResourceError, UserError

if TYPE_CHECKING:
    from openrlhf_ext.cluster.placement import Demand

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
        from openrlhf_ext.cluster.placement import Demand

        yield ok(AREA, f"{asked} ranks on each machine")
        yield from _room(subject, [Demand("model", "model", ranks)])


def _roles(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.cli.rl_roles import Schedule, roles_spec

    demands = roles_spec(subject.parsed, subject.device, Schedule(1, 1)).demands()
    wish = ", ".join(f"{demand.role} {demand.processes} x {demand.devices} ({demand.pool})" for demand in demands)
    yield ok(AREA, f"processes of each role x devices of each (whose devices): {wish}")
    yield from _room(subject, demands)


def _room(subject: Subject, demands: Sequence[Demand]) -> Iterator[Finding]:
    """Raises ResourceError as the start of the run would, on the cluster or on this machine."""
    from openrlhf_ext.cluster.placement import check_room

    device, ray = subject.device, subject.config.ray
    unit = "GPU" if device.count else "CPU"
    if ray.address is not None:
        total, largest = _cluster(ray.address, ray.bind)
        yield ok(RAY, f"the cluster at {ray.address} has {total[unit]:g} {unit}s, {largest[unit]:g} on one node")
        check_room(demands, unit, total[unit], largest[unit])
    elif device.count:
        check_room(demands, unit, device.count, device.count)


LOOK_S = 9.0


def _cluster(address: str, bind: str) -> tuple[dict[str, float], dict[str, float]]:
    """GPUs and CPUs of a cluster in all, and of its largest node; asked for by a process of its own, for Ray may try
    for minutes."""
    command = [sys.executable, "-m", "openrlhf_ext.cluster.look", address, bind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the Ray cluster at {address} did not tell its resources within {LOOK_S:g} s: see `ray status` there."
        ) from None
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["the Ray cluster cannot be asked"])[-1])
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["total"], answer["largest"]
