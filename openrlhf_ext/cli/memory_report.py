"""What memory came to in a run: the plan held against what was measured, and the report where it was not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.table import Table

from openrlhf_ext.cli.preflight import Preflight, cheaper
from openrlhf_ext.device import Device
from openrlhf_ext.device.peaks import PeakMeter
from openrlhf_ext.errors import OutOfMemory, ResourceError, Shortage
from openrlhf_ext.plan.predicted import predicted, terms_of
from openrlhf_ext.plan.types import Plan
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.memory import MemoryLog, Moment, Predicted
from openrlhf_ext.track.progress import console
from openrlhf_ext.types import Report

DRIVER = Moment("driver", "step")
"""The driver is measured from step to step, whatever the roles do in it."""
TERMS = 12


def memory_log(preflight: Preflight) -> MemoryLog:
    """A log that knows what the plan says of every role and phase."""
    if preflight.plan is None:
        return MemoryLog()
    known = {Moment(*at): Predicted(gpu, host) for at, (gpu, host) in predicted(preflight.plan).items()}
    of_driver = [size for at, size in known.items() if at.role == DRIVER.role]
    if of_driver:
        known[DRIVER] = Predicted(0, max(size.host for size in of_driver))
    return MemoryLog(known)


def gauges_of_driver(log: MemoryLog, device: Device) -> Callable[[], Report]:
    """For a journal: measures this process from one call to the next, and says what is new in the log."""
    meter = PeakMeter(device, DRIVER.role)

    def gauges() -> Report:
        log.note(DRIVER.role, {DRIVER.phase: meter.lap()})
        return log.take()

    return gauges


def as_result(log: MemoryLog) -> dict[str, dict[str, dict[str, float]]]:
    """By role and phase, for result.json."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for at, figures in log.figures().items():
        result.setdefault(at.role, {})[at.phase] = figures
    return result


def say_peaks(log: MemoryLog) -> None:
    """One table: the peak of a process of each role in each phase, predicted and measured."""
    figures = log.figures()
    on_gpu = any("reserved_gb" in each for each in figures.values())
    table = Table(box=None, pad_edge=False)
    for name in ("role", "phase", *(["of"] if on_gpu else [])):
        table.add_column(name)
    for name in ("predicted", "measured", "difference"):
        table.add_column(name, justify="right")
    for at, each in figures.items():
        if "reserved_gb" in each:
            table.add_row(at.role, at.phase, "GPU tensors", *_compared(each, ""))
            table.add_row("", "", "host", *_compared(each, "host_"))
        else:
            table.add_row(at.role, at.phase, *(["host"] if on_gpu else []), *_compared(each, ""))
    sampled = any(peak.sampled for peak in log.peaks().values())
    note = " (of the host as it was when each phase ended)" if sampled else ""
    console.print(f"peaks of memory, GB of one process{note}:", soft_wrap=True)
    console.print(table)


def _compared(figures: dict[str, float], prefix: str) -> tuple[str, str, str]:
    measured, said = figures[f"{prefix}measured_gb"], figures.get(f"{prefix}predicted_gb")
    if said is None:
        return "", f"{measured:.2f}", ""
    return f"{said:.2f}", f"{measured:.2f}", f"{(said - measured) / measured:+.0%}" if measured else ""


@contextmanager
def shortage_explained(preflight: Preflight, log: MemoryLog, store: CheckpointStore | None) -> Iterator[None]:
    """Raises ResourceError with the whole report where the block runs out of memory."""
    try:
        yield
    except OutOfMemory as error:
        raise ResourceError(_report(error, preflight, log, store)) from error


def _report(error: OutOfMemory, preflight: Preflight, log: MemoryLog, store: CheckpointStore | None) -> str:
    lack = error.shortage
    parts = [str(error)]
    if figures := log.figures():
        measured = ", ".join(f"{at.role} {at.phase} {each['measured_gb']:.2f}" for at, each in figures.items())
        parts.append(f"Peaks measured before, GB of a process: {measured}.")
    if preflight.plan is not None:
        parts += [*_terms(preflight.plan, lack), _change(preflight, preflight.plan, lack)]
    parts.append(_checkpoint(store))
    return "\n".join(parts)


def _terms(plan: Plan, lack: Shortage) -> Iterator[str]:
    terms = terms_of(plan, lack.role, lack.phase)
    if not terms:
        return
    yield f"What the plan says of {lack.phase}, GB on a GPU or over a machine's processes:"
    for term in terms[:TERMS]:
        yield f"  {term.bytes / 1e9:9.3f}  {term.where:<5}{term.role} {term.name}"
    if rest := sum(term.bytes for term in terms[TERMS:]):
        yield f"  {rest / 1e9:9.3f}       everything else"


def _change(preflight: Preflight, plan: Plan, lack: Shortage) -> str:
    if plan.memory.misfits and lack.phase == "load":
        return " ".join(plan.memory.misfits)
    change = cheaper(preflight)
    if change is None:
        return "No flag that the planner knows would save memory here: take a smaller model or a larger machine."
    other = "" if change.same_result else ", and trains something else"
    return (
        f"The cheapest change: {change.flag} {change.value} (saves {change.saves / 1e9:.2f} GB, "
        f"costs {change.costs}{other})."
    )


def _checkpoint(store: CheckpointStore | None) -> str:
    latest = store.latest() if store is not None else None
    if latest is None:
        return "No checkpoint had been written."
    return f"The checkpoint of step {latest.step} is safe in {latest.path}: continue with --ckpt.load_enable."
