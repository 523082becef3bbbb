"""What a comparison found, as a table and in sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf_ext.cli.eval_report import lines_of
from openrlhf_ext.cli.judge_report import PIPE_WIDTH
from openrlhf_ext.evaluation.agreement import LEVEL
from openrlhf_ext.evaluation.sentences import percent, points, probability


def show(result: Mapping[str, Any], folder: str | None) -> None:
    """On stdout."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    found = result["compared"]
    for side in "ab":
        console.print(
            f"{side.upper()}: {result[side]['name']} ({result[side]['folder']})", markup=False, soft_wrap=True
        )
    if found["rate"] is not None:
        console.print(_table(found, "rate", result["rate"]["name"], of_rates=True))
    if found["score"] is not None:
        console.print(_table(found, "score", "mean score", of_rates=False))
    for line in _remarks(result):
        console.print(line, markup=False, soft_wrap=True)
    if folder is not None:
        console.print(f"all figures and pictures: {folder}", markup=False, soft_wrap=True)


def _table(found: Mapping[str, Any], measure: str, name: str, *, of_rates: bool) -> Table:
    table = Table()
    for column in (name, "questions", "A", "B", "B - A", f"{100 * LEVEL:g} %", "p", "more than chance"):
        table.add_column(column, justify="left" if column == name else "right")
    for label, cells in lines_of(found, found):
        cell = cells[measure]
        if cell is None:
            table.add_row(Text(label), "0", "-", "-", "-", "", "", "")
            continue
        n, difference = cell["n"], cell["difference"]
        sizes = [
            "-" if value is None else points(value, n, sign=True) if of_rates else f"{value:+.3f}"
            for value in (difference["value"], difference["low"], difference["high"])
        ]
        sides = [percent(cell[side]["value"], n) if of_rates else f"{cell[side]['value']:.3f}" for side in ("a", "b")]
        p = cell.get("p_holm", cell["p"])
        table.add_row(Text(label), f"{n:,}", *sides, sizes[0], f"{sizes[1]} to {sizes[2]}",
                      "-" if p is None else probability(p), "yes" if cell["told"] else "no")  # fmt: skip
    return table


def _remarks(result: Mapping[str, Any]) -> Iterator[str]:
    found = result["compared"]
    yield from result["sentences"]
    if found["groups"] or found["subjects"]:
        yield "p beside a group or a subject is Holm's, for the values of its column or for all subjects."
    if told := result["preference"]:
        own = told["figures"]
        rate = own["win_rate"]
        low, high = (percent(rate[end], own["pairs"]) for end in ("low", "high"))
        yield (
            f"by the judge {told['of']} wins {own['counts']['won']}, ties {own['counts']['tie']} and loses "
            f"{own['counts']['lost']} of {own['pairs']} pairs: {percent(rate['value'], own['pairs'])}, a tie being "
            f"half ({low} to {high})"
        )
    if (subjects := found["subjects"]) and subjects["unknown"]:
        listed = ", ".join(f"{id} ({n})" for id, n in subjects["unknown"].items())
        yield f"subjects that the taxonomy does not have: {listed}"
    for warning in result["warnings"]:
        yield f"WARNING: {warning}"
