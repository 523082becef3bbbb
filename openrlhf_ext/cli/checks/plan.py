"""The plan: whether it fits in memory and on disk, and the traps that the flags are in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_ext.cli.checks.finding import Finding, error, in_two, ok, warning
from openrlhf_ext.cli.checks.folders import nearest_that_is
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import UserError

if TYPE_CHECKING:
    from openrlhf_ext.plan.types import Plan

AREA, DISK, MEMORY = "plan", "disk", "memory"


def find_plan(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.cli.preflight import can_start, hardware_here, refusal
    from openrlhf_ext.device.host_memory import free_host_bytes
    from openrlhf_ext.plan.make import make_plan

    parsed = subject.parsed
    hardware = hardware_here(parsed, subject.device)
    try:
        plan = make_plan(subject.command, parsed.config, parsed.explicit, hardware, subject.data)  # type: ignore[arg-type]
    except UserError as raised:
        text, remedy = in_two(str(raised))
        yield warning(AREA, f"there is no plan of this run: {text}", remedy or "it may start all the same.")
        return
    memory = plan.memory
    peaks = f"{memory.gpu_peak / 1e9:.2f} GB on a GPU, {memory.host_peak / 1e9:.2f} GB on the host"
    if can_start(plan):
        yield ok(MEMORY, f"the plan's peaks: {peaks}")
    else:
        text, _, remedy = refusal(plan).rpartition("; ")
        level = warning if parsed.config.plan.force else error
        yield level(MEMORY, text, remedy)
    free = free_host_bytes()
    if can_start(plan) and free is not None and memory.host_peak > free:
        yield warning(
            MEMORY,
            f"the run will hold {memory.host_peak / 1e9:.1f} GB on the host, and {free / 1e9:.1f} GB are free now",
            "end other processes first.",
        )
    for trap in plan.warnings:
        text, remedy = in_two(trap.text)
        yield warning(AREA, f"{text} ({trap.code})", remedy or "see whether that is meant.")
    yield from _disk(subject, plan)


def _disk(subject: Subject, plan: Plan) -> Iterator[Finding]:
    """Checkpoints that are kept, one more while it is written, and the export at the end."""
    from openrlhf_ext.plan.disk import checkpoint_bytes, kept_bytes
    from openrlhf_ext.plan.parameters import total_parameters
    from openrlhf_ext.plan.types import BYTES

    ckpt = subject.config.ckpt
    each, kept = checkpoint_bytes(plan.setup), kept_bytes(plan.setup)
    if plan.arithmetic.saves is not None:
        kept = min(kept, each * plan.arithmetic.saves)
    trained = next(model for model in plan.setup.models if model.role in ("policy", "model"))
    exported = total_parameters(trained) * BYTES[trained.dtype]
    folders = {"--ckpt.path": (Path(ckpt.path), kept + each), "--ckpt.output_dir": (Path(ckpt.output_dir), exported)}
    disks: dict[int, tuple[list[str], Path, int]] = {}
    for flag, (folder, wanted) in folders.items():
        there = nearest_that_is(folder)
        flags, place, before = disks.setdefault(there.stat().st_dev, ([], there, 0))
        disks[there.stat().st_dev] = ([*flags, f"{flag} {folder}"], place, before + wanted)
    for flags, place, wanted in disks.values():
        total, _, free = shutil.disk_usage(place)
        if not total:
            continue  # no disk at all: it cannot be written to either
        text = f"{' and '.join(flags)}: {_size(wanted)} will be written and {_size(free)} are free"
        if wanted > free:
            yield error(
                DISK,
                f"{text} (a checkpoint is {_size(each)}, and {max(kept // each, 1) if each else 0} are kept)",
                "lower --ckpt.max_num or --ckpt.max_mem, save less often by --ckpt.save_steps, or choose another disk.",
            )
        else:
            yield ok(DISK, text)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
