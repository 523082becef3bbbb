"""A plan as its user reads it: one screen before a run, every term for `openrlhf-ext plan`, a line each for a sweep."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from openrlhf_ext.errors import ResourceError, UserError
from openrlhf_ext.plan.layout import SPOKEN, layout_of
from openrlhf_ext.plan.types import Arithmetic, Memory, Phase, PhasePeak, Place, Plan, Term

_PIPE_WIDTH = 120
LARGEST = 6
"""Terms in the one-screen summary."""


def show(what: RenderableType) -> None:
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False).print(what)


def summary(plan: Plan) -> Group:
    """One screen: the verdict, the peak and its largest terms, steps, time, and what is probably not meant."""
    return Group(*_headline(plan), *_largest_terms(plan), *_steps(plan), *_time(plan), *_warnings(plan))


def full(plan: Plan) -> Group:
    """Everything: each term by role and phase, changes with what they save and cost."""
    return Group(
        *_headline(plan),
        *_placement(plan),
        *_peaks(plan.memory),
        _terms(plan.memory, "gpu"),
        _terms(plan.memory, "host"),
        *_steps(plan),
        *_time(plan),
        *_warnings(plan),
    )


def sweep_table(lines: Sequence[tuple[Mapping[str, str], Plan | UserError]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in lines[0][0] if lines else ():
        table.add_column(name, style="cyan", justify="right", overflow="fold")
    columns = ("effective batch", "steps", "GPU GB", "states GB", "host GB", "hours", "verdict")
    for name in columns:
        table.add_column(name, justify="left" if name == "verdict" else "right", overflow="fold")
    for values, plan in lines:
        if isinstance(plan, UserError):
            table.add_row(*values.values(), *[""] * (len(columns) - 1), str(plan))
            continue
        hours = plan.time.total_seconds / 3600 if plan.time and plan.time.total_seconds is not None else None
        table.add_row(
            *values.values(),
            f"{plan.arithmetic.effective_batch:,}",
            _count(plan.arithmetic.steps_total),
            _gb(plan.memory.gpu_peak),
            _gb(plan.states_bytes),
            _gb(plan.memory.host_peak),
            "" if hours is None else f"{hours:,.1f}",
            plan.verdict,
        )
    return table


def _headline(plan: Plan) -> Iterator[RenderableType]:
    hardware = plan.setup.hardware
    card = hardware.card
    machines = f"{hardware.nodes} x " if hardware.nodes > 1 else ""
    where = f"{machines}{hardware.count} x {card.name} ({_gb(card.bytes)} GB)" if card else f"{machines}CPU"
    main = plan.setup.models[0]
    yield Text(f"{plan.setup.command} of {main.shape.name} on {where}: {plan.verdict}", style="bold")
    share = plan.trainable_params / plan.total_params
    trained = f"{plan.trainable_params:,} of {plan.total_params:,} parameters are trained ({share:.1%})"
    yield Text(f"  {trained}; weights, gradients and optimizer {_gb(plan.states_bytes)} GB on each rank")
    yield Text(f"  {_room(plan)}")
    if plan.changes:
        said = "chosen" if plan.memory.fits else "what would make it fit, cheapest first"
        yield Text(f"  {said}:")
        for change in plan.changes:
            other = "" if change.same_result else " (trains something else)"
            yield Text(f"    {change.flag} {change.value}: saves {_gb(change.saves)} GB, costs {change.costs}{other}")


def _room(plan: Plan) -> str:
    memory = plan.memory
    parts = []
    if memory.gpu_limit is not None:
        peak = max(memory.peaks, key=lambda item: item.gpu_bytes)
        free = memory.gpu_limit - peak.gpu_bytes
        left = f"{_gb(free)} GB free" if free >= 0 else f"{_gb(-free)} GB too much"
        parts.append(f"a GPU's peak {_gb(peak.gpu_bytes)} GB in {peak.phase} ({peak.pool}), {left}")
    if memory.host_peak:
        limit = f" of {_gb(memory.host_limit)}" if memory.host_limit is not None else ""
        parts.append(f"a machine's memory {_gb(memory.host_peak)}{limit} GB")
    if memory.kv_tokens is not None:
        sequences = "" if memory.kv_sequences is None else f", {memory.kv_sequences:,} of the longest sequences"
        parts.append(f"room for {memory.kv_tokens:,} KV tokens{sequences} in an engine")
    return "; ".join(parts)


def _largest_terms(plan: Plan) -> Iterator[RenderableType]:
    memory = plan.memory
    if not memory.peaks:
        return
    where: Place = "gpu" if memory.gpu_peak else "host"
    peak = max(memory.peaks, key=lambda item: item.gpu_bytes if where == "gpu" else item.host_bytes)
    there = [term for term in memory.terms if _counts(term, where, peak)]
    largest = sorted(there, key=lambda term: -term.bytes)[:LARGEST]
    rest = sum(term.bytes for term in there) - sum(term.bytes for term in largest)
    listed = [f"{term.role} {term.name} {_gb(term.bytes)}" for term in largest]
    yield Text(f"  in {peak.phase}: {', '.join(listed)}, everything else {_gb(rest)} GB")


def _counts(term: Term, where: Place, peak: PhasePeak) -> bool:
    return term.where == where and peak.phase in term.phases and (where == "host" or term.pool == peak.pool)


def _placement(plan: Plan) -> Iterator[RenderableType]:
    """Node by node and GPU by GPU, neighbours with the same roles in one line."""
    try:
        layout = layout_of(plan.setup)
    except ResourceError as raised:
        yield Text(f"  {raised}")
        return
    table = Table(box=None, pad_edge=True, title="who sits where", title_justify="left")
    for name in ("node", "GPU" if plan.setup.hardware.on_gpu else "process", "roles"):
        table.add_column(name, overflow="fold")
    for number, node in enumerate(layout.nodes):
        alike = _alike([layout.sitting(number, device) for device in range(node.devices)])
        for line, (first, last) in enumerate(alike):
            sitting = zip(layout.sitting(number, first), layout.sitting(number, last), strict=True)
            roles = ", ".join(f"{SPOKEN.get(role, role)} {_span(a, b)}" for (role, a), (_, b) in sitting) or "-"
            table.add_row("" if line else node.name, _span(first, last), roles)
    yield table


def _alike(sitting: Sequence[Sequence[tuple[str, int]]]) -> Iterator[tuple[int, int]]:
    """Runs of devices with the same process on all of them, or the next of the same roles on each."""
    first = 0
    for device in range(1, len(sitting) + 1):
        before, now = sitting[device - 1], sitting[device] if device < len(sitting) else None
        same = now == before and before == sitting[first]
        following = now == [(role, number + 1) for role, number in before] and (
            before != sitting[first] or device == first + 1
        )
        if not (same or following):
            yield first, device - 1
            first = device


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _peaks(memory: Memory) -> Iterator[RenderableType]:
    table = Table(box=None, pad_edge=True, title="peak of each phase, GB", title_justify="left")
    on_gpu = memory.gpu_limit is not None
    for name in ("phase", *(("GPUs of", "a GPU") if on_gpu else ()), "a machine"):
        table.add_column(name, justify="right" if name.startswith("a ") else "left")
    for peak in memory.peaks:
        table.add_row(peak.phase, *((peak.pool, _gb(peak.gpu_bytes)) if on_gpu else ()), _gb(peak.host_bytes))
    yield table


def _terms(memory: Memory, where: Place) -> RenderableType:
    """A line for each term, a column for each phase."""
    terms = [term for term in memory.terms if term.where == where and term.bytes]
    if not terms:
        return Text("")
    phases: list[Phase] = list(dict.fromkeys(peak.phase for peak in memory.peaks))
    title = "on a GPU, GB" if where == "gpu" else "in a machine's memory, GB"
    table = Table(box=None, pad_edge=True, title=title, title_justify="left")
    table.add_column("role")
    table.add_column("term", overflow="fold")
    for phase in phases:
        table.add_column(phase, justify="right")
    for term in sorted(terms, key=lambda item: (item.pool, item.role, -item.bytes)):
        cells = [_gb(term.bytes) if phase in term.phases else "" for phase in phases]
        table.add_row(term.role, term.name, *cells)
    return table


def _steps(plan: Plan) -> Iterator[RenderableType]:
    arithmetic, data = plan.arithmetic, plan.setup.data
    if arithmetic.steps_total is None:
        yield Text(
            f"  batches of {arithmetic.effective_batch:,}; how many is not known: name the data, or give --plan.rows"
        )
        return
    config = plan.setup.config
    kind, rows = "optimizer steps", arithmetic.effective_batch
    if plan.setup.command == "rl":
        kind, rows = "rollout steps", config.rollout.batch_size
    most = "at most " if config.train.stop_when else ""
    batch = f"of {rows:,}"
    rest = f" and a last one of {arithmetic.leftover_rows:,}" if arithmetic.leftover_rows else ""
    epoch = f"{arithmetic.steps_per_epoch:,} full steps {batch}{rest} in an epoch"
    optimizer = ""
    if plan.setup.command == "rl":
        each = f"{arithmetic.effective_batch:,} sequences"
        optimizer = f", {_count(arithmetic.optimizer_steps)} optimizer steps of {each}"
    yield Text(f"  {data.rows:,} rows: {epoch}, {most}{arithmetic.steps_total:,} {kind} in all{optimizer}")
    yield Text(f"  {_cadences(arithmetic)}")
    if most:
        yield Text(
            f"  it ends as soon as {config.train.stop_when}, and steps, saves and time are the most there may be"
        )
    if data.mean_tokens is not None:
        per_step = f", {arithmetic.tokens_per_step:,.0f} tokens a step" if arithmetic.tokens_per_step else ""
        yield Text(f"  {data.mean_tokens:,.0f} tokens a row on average ({data.how}){per_step}")


def _cadences(arithmetic: Arithmetic) -> str:
    return (
        f"checkpoints: {_count(arithmetic.saves)}; evaluations: {_count(arithmetic.evals)}; "
        f"lines of metrics: {_count(arithmetic.logs)}; warm-up steps: {_count(arithmetic.warmup_steps)}"
    )


def _time(plan: Plan) -> Iterator[RenderableType]:
    time = plan.time
    if time is None:
        return
    parts = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in time.parts.items() if seconds)
    total = f"{_duration(time.total_seconds)} in all; " if time.total_seconds is not None else ""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in time.efficiency.items())
    how = "as measured in that run" if time.calibrated else "of the card's best, assumed"
    yield Text(f"  about {total}{_seconds(time.step_seconds)} a step ({parts})")
    yield Text(f"  efficiency {shares} {how}", style="dim")


def _warnings(plan: Plan) -> Iterator[RenderableType]:
    for warning in plan.warnings:
        yield Text(f"  ! {warning.code}: {warning.text}", style="yellow")


def _gb(count: int | None) -> str:
    if count is None:
        return ""
    gb = count / 1e9
    return f"{gb:,.1f}" if abs(gb) >= 0.95 else f"{gb:.2f}" if abs(gb) >= 0.01 else f"{gb:.3f}"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
