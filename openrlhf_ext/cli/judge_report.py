"""What a calibration found, as tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LONGEST_CELL = 80
PIPE_WIDTH = 120


def show(result: Mapping[str, Any], disagreements: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The figures, what they mean for a training, and the first disagreements, on stdout."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(_figures(result))
    for line in _remarks(result):
        console.print(line, markup=False, soft_wrap=True)
    if disagreements:
        console.print(_disagreements(disagreements))
    console.print(f"all figures and disagreements: {folder}", markup=False, soft_wrap=True)


def _figures(result: Mapping[str, Any]) -> Table:
    found = result["agreement"]
    table = Table(title=f"{result['judge']} by {result['rubric']}, {result['mode']}, {result['responses']} responses")
    for name in ("", "value", "95 %"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("accuracy", "precision", "recall", "f1", "kappa"):
        table.add_row("Cohen's kappa" if name == "kappa" else name, *_cells(found[name]))
    if found["auc"] is not None:
        table.add_row("area under ROC", f"{found['auc']:.3f}", "")
    if "pairs_right" in result:
        table.add_row("right in both orders", *_cells(result["pairs_right"]))
    if result["order"] is not None:
        table.add_row("verdicts that the order turns", *_cells(result["order"]["changed"]))
        if result["mode"] == "pairwise":
            table.add_row("the response shown first wins", *_cells(result["order"]["first"]))
    if result["consistency"] is not None:
        again = result["consistency"]
        name = f"{again['repeats']} of {again['repeats']} verdicts alike, temperature {again['temperature']:g}"
        table.add_row(name, *_cells(again["unanimous"]))
    return table


def _cells(estimate: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return (
        "-" if value is None else f"{value:.3f}",
        "" if low is None or high is None else f"{low:.3f} to {high:.3f}",
    )


def _remarks(result: Mapping[str, Any]) -> list[str]:
    found = result["agreement"]
    lines = [
        f"right and called right {found['true_positives']}, right and called wrong {found['false_negatives']}, "
        f"wrong and called right {found['false_positives']}, wrong and called wrong {found['true_negatives']}"
    ]
    if result["no_verdict"]:
        counts = ", ".join(f"{reason} {n}" for reason, n in result["no_verdict"].items())
        lines.append(f"without a verdict, and in no figure: {counts}")
    if result.get("ties"):
        lines.append(f"ties, which are in no figure but the orders: {result['ties']}")
    if result["one_kind_of_label"]:
        lines.append("WARNING: all labels are of one kind, so nothing says whether the judge tells right from wrong.")
    elif result["no_better_than_chance"]:
        lines.append(
            "WARNING: the judge is no better than chance on these rows: the interval of kappa is not above 0. "
            "Do not train by it."
        )
    return lines


def _disagreements(rows: Sequence[Mapping[str, Any]]) -> Table:
    pairs = "right" in rows[0]
    table = Table(title=f"the first {len(rows)} disagreements", show_lines=True)
    for name in ("row", "label", "said", "prompt", *(("right", "wrong") if pairs else ("response",))):
        table.add_column(name, overflow="fold")
    for row in rows:
        said = {"right first": row["right_shown_first"], "right second": row["right_shown_second"]} if pairs else {
            "reward": row["reward"], **row["criteria"]}  # fmt: skip
        texts = [row["prompt"], *([row["right"], row["wrong"]] if pairs else [row["response"]])]
        words = ", ".join(f"{name} {value}" for name, value in said.items())
        table.add_row(str(row["row"]), row["label"], words, *(_shortened(text) for text in texts))
    return table


def _shortened(text: str) -> str:
    """On one line, without markup of rich's."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST_CELL else line[: LONGEST_CELL - 3] + "..."
    return line.replace("[", "\\[")
