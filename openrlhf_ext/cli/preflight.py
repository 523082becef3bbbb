"""The plan of a run that is about to start, with its real data on the machine it runs on.

It is shown before anything loads; what cannot fit is refused, or changed where the planner may choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openrlhf_ext.cli.plan_hardware import asked_nodes
from openrlhf_ext.cli.plan_text import summary
from openrlhf_ext.config import Parsed
from openrlhf_ext.device import Device, visible_gpus
from openrlhf_ext.device.host_memory import host_bytes
from openrlhf_ext.errors import ConfigError, UserError
from openrlhf_ext.plan.auto import chosen
from openrlhf_ext.plan.cards import card_named, card_of_size
from openrlhf_ext.plan.make import make_plan
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.trial import Command
from openrlhf_ext.plan.types import Card, Change, DataSize, Hardware, Plan
from openrlhf_ext.track.progress import console

SHOWN_CHANGES = 3
TIGHTER = (0.8, 0.9, 0.95, 0.98, 0.995)
"""Shares of what a run was planned to need, for which changes are looked for once it has run out of memory."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """The flags that the run goes on with, and its plan (None: the planner does not know a model's architecture)."""

    parsed: Parsed
    plan: Plan | None


def preflight(command: Command, parsed: Parsed, device: Device, data: DataSize) -> Preflight:
    """Plan, say so, and refuse. With --memory.auto the config that comes back is the planner's choice.

    Raises ConfigError where the run cannot fit, unless --plan.force.
    """
    hardware = hardware_here(parsed, device)
    try:
        setup_of(command, parsed.config, parsed.explicit, hardware, data)
    except UserError as error:
        console.print(f"There is no plan of this run, which starts all the same: {error}", markup=False, soft_wrap=True)
        return Preflight(parsed, None)
    if parsed.config.memory.auto:
        parsed = _with_choice(command, parsed, hardware, data)
    plan = make_plan(command, parsed.config, parsed.explicit, hardware, data)
    console.print(summary(plan), soft_wrap=True)
    if not can_start(plan):
        if not parsed.config.plan.force:
            raise ConfigError(refusal(plan))
        console.print("--plan.force: it starts all the same.")
    return Preflight(parsed, plan)


def _with_choice(command: Command, parsed: Parsed, hardware: Hardware, data: DataSize) -> Parsed:
    """Raises ConfigError where nothing that the planner may choose makes it fit, unless --plan.force."""
    try:
        config, changes = chosen(command, parsed.config, parsed.explicit, hardware, data)
    except ConfigError as error:
        if not parsed.config.plan.force:
            raise
        console.print(str(error), markup=False, soft_wrap=True)
        return parsed
    said = ", ".join(f"{change.flag} {change.value}" for change in changes) or "everything stays as it is"
    console.print(f"--memory.auto: {said}", markup=False, soft_wrap=True)
    return replace(parsed, config=config)


def hardware_here(parsed: Parsed, device: Device) -> Hardware:
    nodes = asked_nodes(parsed)
    if device.count == 0:
        return Hardware(None, 0, nodes, host_bytes())
    smallest = min(visible_gpus(), key=lambda gpu: gpu.bytes)
    return Hardware(_card(smallest.name, smallest.bytes), device.count, nodes, host_bytes())


def _card(name: str, size: int) -> Card:
    """The table's card with the memory that it has here; one of its size where the table lacks it."""
    try:
        card = card_named(name)
    except ConfigError:
        card = replace(card_of_size(size / 1e9), name=name)
    return replace(card, bytes=size)


def can_start(plan: Plan) -> bool:
    """Whether it is worth a try: without GPUs only the machine's memory can be too small."""
    memory = plan.memory
    if plan.setup.hardware.on_gpu:
        return memory.fits
    return memory.host_limit is None or memory.host_peak <= memory.host_limit


def refusal(plan: Plan) -> str:
    """One sentence: what does not fit, by how much, and what would."""
    memory = plan.memory
    wrongs = list(memory.misfits)
    if memory.gpu_limit is not None and memory.gpu_peak > memory.gpu_limit:
        peak = max(memory.peaks, key=lambda item: item.gpu_bytes)
        where = f"a GPU of {peak.pool} would hold {_gb(peak.gpu_bytes)} GB in {peak.phase}"
        wrongs.append(f"{where} and has {_gb(memory.gpu_limit)}, {_gb(memory.gpu_peak - memory.gpu_limit)} too little")
    if memory.host_limit is not None and memory.host_peak > memory.host_limit:
        peak = max(memory.peaks, key=lambda item: item.host_bytes)
        where = f"a machine's processes would hold {_gb(peak.host_bytes)} GB in {peak.phase}"
        lack = _gb(memory.host_peak - memory.host_limit)
        wrongs.append(f"{where} and it has {_gb(memory.host_limit)}, {lack} too little")
    listed = [f"{change.flag} {change.value}" for change in plan.changes]
    more = f" and {len(listed) - SHOWN_CHANGES} more" if len(listed) > SHOWN_CHANGES else ""
    first = f"{', '.join(listed[:SHOWN_CHANGES])}{more}" if listed else "no change that the planner knows"
    remedy = f"{first} would make it fit"
    return f"This run does not fit: {'; '.join(wrongs)}; {remedy}, and --plan.force starts it all the same."


def cheaper(preflight: Preflight) -> Change | None:
    """The cheapest change that saves memory in a run that may have been planned to fit."""
    plan = preflight.plan
    assert plan is not None, "nothing is cheaper than what is not planned"
    if plan.changes:
        return plan.changes[0]
    for share in TIGHTER:
        tight = make_plan(
            plan.setup.command,
            plan.setup.config,
            preflight.parsed.explicit,
            _with_less(plan, share),
            plan.setup.data,
        )
        if tight.changes:
            return max(tight.changes, key=lambda change: change.same_result)
    return None


def _with_less(plan: Plan, share: float) -> Hardware:
    """Hardware with only this share of what the plan needs."""
    hardware = plan.setup.hardware
    if hardware.card is None:
        return replace(hardware, host_bytes=int(plan.memory.host_peak * share))
    return replace(hardware, card=replace(hardware.card, bytes=int(plan.memory.gpu_peak * share)))


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}"
