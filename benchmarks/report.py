"""From turns to figures: medians, ratios, one table a workload."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from measure import QUIET_CORES, Turns
from rich.table import Table

AIMS = {
    "natural": {"trl_over_ours": (">=", 5.0), "ours_over_limit": ("<=", 1.2)},
    "fixed": {"trl_over_ours": (">=", 1.0), "ours_over_limit": ("<=", 1.2)},
}
PHASES = ("generate", "score", "infer", "estimate, split", "update", "publish", "rest")
NO_HEADLINE = (
    "TRL generates padded batches here, in which every answer lasts as long as the longest: on natural lengths the "
    "ratio to it is mostly this padding, and is no headline."
)


def summary(turns: Mapping[str, Turns]) -> dict[str, Any]:
    """Medians of every side, and the ratios between them that can be told."""
    sides = {name: _side(record) for name, record in turns.items() if record.kept}
    ratios = {}
    if {"ours", "trl"} <= sides.keys():
        ratios["trl_over_ours"] = sides["trl"]["seconds"] / sides["ours"]["seconds"]
    if {"ours", "limit"} <= sides.keys():
        # The limit repeats what ours did in the same round: round by round, lengths do not matter.
        pairs = zip(turns["ours"].kept, turns["limit"].kept, strict=True)
        ratios["ours_over_limit"] = statistics.median(ours.seconds / limit.seconds for ours, limit in pairs)
    return {"sides": sides, "ratios": ratios}


def _side(record: Turns) -> dict[str, Any]:
    lengths = [length for turn in record.kept for length in turn.lengths]
    return {
        "seconds": record.seconds(),
        "phases": record.phases(),
        "each_seconds": [turn.seconds for turn in record.kept],
        "rounds": len(record.kept),
        "discarded": record.discarded,
        "disturbed": record.disturbed,
        "cores_of_others": statistics.median(load.others for load in record.loads),
        "cores_of_idle_sides": statistics.median(load.idle for load in record.loads),
        "each_cores_of_others": [load.others for load in record.loads],
        "samples": len(record.kept[0].lengths),
        "mean_length": statistics.mean(lengths) if lengths else 0.0,
        "max_length": max(lengths, default=0),
        "tokens_per_step": len(lengths) / len(record.kept) * statistics.mean(lengths) if lengths else 0.0,
    }


def table(name: str, result: Mapping[str, Any]) -> Table:
    """Seconds per step by phase; a phase that a side does not have is left empty."""
    sides: Mapping[str, Any] = result["sides"]
    shown = Table(title=f"{name} lengths: seconds per step (medians)", title_justify="left")
    shown.add_column("")
    for side in sides:
        shown.add_column(side, justify="right")
    for phase in phases_in_order(sides):
        shown.add_row(phase, *(_seconds(data["phases"].get(phase)) for data in sides.values()))
    shown.add_section()
    shown.add_row("step", *(_seconds(data["seconds"]) for data in sides.values()), style="bold")
    shown.add_section()
    for label, key, form in (
        ("rounds", "rounds", "{}"),
        ("discarded (others were busy)", "discarded", "{}"),
        (f"kept above {QUIET_CORES} cores of others", "disturbed", "{}"),
        ("cores of others", "cores_of_others", "{:.2f}"),
        ("cores of idle sides", "cores_of_idle_sides", "{:.2f}"),
        ("samples", "samples", "{}"),
        ("mean length", "mean_length", "{:.1f}"),
        ("longest", "max_length", "{}"),
        ("tokens per step", "tokens_per_step", "{:.0f}"),
    ):
        shown.add_row(label, *(form.format(data[key]) for data in sides.values()))
    return shown


def phases_in_order(sides: Mapping[str, Any]) -> list[str]:
    """The phases that any side has: ours first, in the order of the loop."""
    found = dict.fromkeys(phase for data in sides.values() for phase in data["phases"])
    return [phase for phase in PHASES if phase in found] + [phase for phase in found if phase not in PHASES]


def remarks(name: str, result: Mapping[str, Any], padded: bool) -> list[str]:
    """The ratios against their aims, and what must be said beside them."""
    words = {"trl_over_ours": "TRL's step / ours", "ours_over_limit": "ours / the limit"}
    lines = []
    for ratio, value in result["ratios"].items():
        relation, aim = AIMS[name][ratio]
        met = value >= aim if relation == ">=" else value <= aim
        lines.append(f"{words[ratio]}: {value:.2f} (aim {relation} {aim:g}: {'met' if met else 'missed'})")
    if padded and name == "natural" and "trl_over_ours" in result["ratios"]:
        lines.append(NO_HEADLINE)
    if any(side["disturbed"] for side in result["sides"].values()):
        lines.append("The machine was not quiet: these figures are worth little, take them again.")
    return lines


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def versions(names: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
