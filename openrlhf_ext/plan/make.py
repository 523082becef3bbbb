"""The whole plan of a command: memory, steps, time, traps, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from openrlhf_ext.plan.arithmetic import arithmetic_of
from openrlhf_ext.plan.changes import Search, searched
from openrlhf_ext.plan.parameters import total_parameters, trainable_parameters
from openrlhf_ext.plan.speed import time_of
from openrlhf_ext.plan.states import states_bytes
from openrlhf_ext.plan.traps import warnings_of
from openrlhf_ext.plan.trial import Command
from openrlhf_ext.plan.types import DataSize, Hardware, Memory, Plan


def make_plan(
    command: Command,
    config: Any,
    explicit: Iterable[str],
    hardware: Hardware,
    data: DataSize,
    efficiency: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of a checked config tree; `explicit` are the paths that flags or files set.

    `efficiency`: the part of the roofline that each part of a step reaches, where it was measured. Raises UserError
    for a model whose shape cannot be found.
    """
    explicit = frozenset(explicit)
    search = searched(command, config, explicit, hardware, data)
    setup, memory = search.start.setup, search.start.memory
    arithmetic = arithmetic_of(setup)
    trained = next(model for model in setup.models if model.role in ("policy", "model"))
    return Plan(
        setup=setup,
        trainable_params=trainable_parameters(trained),
        total_params=total_parameters(trained),
        states_bytes=states_bytes(trained),
        memory=memory,
        arithmetic=arithmetic,
        time=time_of(setup, arithmetic, efficiency),
        warnings=warnings_of(setup, explicit, arithmetic, memory),
        changes=search.changes() if search.fits else (),
        verdict=verdict_of(search),
    )


def verdict_of(search: Search) -> str:
    """`fits`, `does not fit`, or why nothing makes it fit."""
    if search.start.fits:
        return "fits"
    return "does not fit" if search.fits else f"does not fit: {_in_the_way(search.trial.memory)}"


def _in_the_way(memory: Memory) -> str:
    """The smallest that the run can be made is still too large: what of it is largest."""
    if memory.misfits:
        return memory.misfits[0].removesuffix(".")
    if memory.gpu_limit is not None and memory.gpu_peak > memory.gpu_limit:
        return f"with every change made a GPU still has to hold {_too_much(memory, memory.gpu_limit, on_gpu=True)}"
    assert memory.host_limit is not None, "what does not fit is above a limit"
    return f"with every change made a machine still has to hold {_too_much(memory, memory.host_limit, on_gpu=False)}"


def _too_much(memory: Memory, limit: int, *, on_gpu: bool) -> str:
    peak = max(memory.peaks, key=lambda peak: peak.gpu_bytes if on_gpu else peak.host_bytes)
    terms = [
        term
        for term in memory.terms
        if peak.phase in term.phases and term.where == ("gpu" if on_gpu else "host")
        if not on_gpu or term.pool == peak.pool
    ]
    largest = max(terms, key=lambda term: term.bytes)
    whole = peak.gpu_bytes if on_gpu else peak.host_bytes
    return (
        f"{whole / 1e9:.1f} GB of {limit / 1e9:.1f} GB ({largest.bytes / 1e9:.1f} GB of it: the {largest.role}'s "
        f"{largest.name})"
    )
