"""Figures as pictures: bars with intervals for each subject and group, and two models side by side.

PNG files beside the results, for eyes of any kind: tints of one hue for a hierarchy, blue circles and orange squares
for two models (Okabe and Ito's colours). matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.evaluation.figures import rate_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 60
"""A picture of more leaves out the deepest subjects, or the smallest groups, and says so."""
LONGEST_LABEL = 44
SUBJECTS = "subjects.png"
TINTS = ("#0072B2", "#56A0CE", "#A9CFE6")  # of the levels 1, 2, and 3 and deeper
COLOURS, MARKS = ("#0072B2", "#D55E00"), ("o", "s")
GREY = "#666666"

Estimate = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a picture: n questions with one estimate, or with A's and B's. `depth` is the level in a hierarchy, 0
    beside it. `told`: the two estimates differ by more than chance.
    """

    label: str
    n: int
    estimates: Sequence[Estimate]
    depth: int = 1
    told: bool = False


def write_plots(folder: Path, figures: Mapping[str, Any], rate: Mapping[str, str]) -> list[Path]:
    """Draw what `summarise` found: subjects.png, and by_COLUMN.png for each group; `rate` has the name and the outcome.
    Where nothing is rated the mean score is drawn. Returns the files.
    """
    whole = figures["all"]
    of_score = whole["accuracy"]["value"] is None
    name = "mean score" if of_score else rate["name"]

    def line(label: str, found: Mapping[str, Any], depth: int = 1) -> Line:
        n = found["questions"] if of_score else found["rated"]["questions"]
        return Line(label, n, [found["score"] if of_score else rate_of(found, rate["outcome"])], depth)

    return [
        _draw(folder / file, title, [line("all", whole, 0), *lines], name, percent=not of_score)
        for file, title, lines in _pictures(figures, line)
    ]


def write_comparison_plots(folder: Path, compared: Mapping[str, Any], names: Sequence[str], rate: str) -> list[Path]:
    """Draw what `compare` found, A's and B's names being `names`: comparison.png with all questions and each subject,
    comparison_by_COLUMN.png for each group. Where nothing is rated scores are drawn. Returns the files.
    """
    measure = next((each for each in ("rate", "score") if compared[each] is not None), None)
    if measure is None:
        return []

    def line(label: str, found: Mapping[str, Any], depth: int = 1) -> Line:
        cell = found[measure]
        return (
            Line(label, cell["n"], [cell["a"], cell["b"]], depth, cell["told"]) if cell else Line(label, 0, [], depth)
        )

    pictures = [
        ("comparison.png" if file == SUBJECTS else f"comparison_{file}", title, lines)
        for file, title, lines in _pictures(compared, line)
    ]
    if compared["subjects"] is None:
        pictures.insert(0, ("comparison.png", "", []))
    name = rate if measure == "rate" else "mean score"
    return [
        _draw(folder / file, title, [line("all", compared, 0), *lines], name, percent=measure == "rate", names=names)
        for file, title, lines in pictures
    ]


def _pictures(figures: Mapping[str, Any], line: Callable[..., Line]) -> list[tuple[str, str, list[Line]]]:
    """File, title and lines of each grouping."""
    pictures = []
    if figures["subjects"] is not None:
        nodes = figures["subjects"]["nodes"]
        shown = max(1, max((node["depth"] for node in nodes), default=1))
        while shown > 1 and sum(node["depth"] <= shown for node in nodes) > MOST_LINES:
            shown -= 1
        kept = [node for node in nodes if node["depth"] <= shown][:MOST_LINES]
        left_out = f" ({len(nodes) - len(kept)} of {len(nodes)} not shown)" if len(kept) < len(nodes) else ""
        lines = [line(f"{node['id']}  {node['name']}".strip(), node, node["depth"]) for node in kept]
        if figures["subjects"]["without"] is not None:
            lines.append(line("(no known subject)", figures["subjects"]["without"], 0))
        pictures.append((SUBJECTS, f"by subject{left_out}", lines))
    for column, groups in figures["groups"].items():
        lines = [line(value, found) for value, found in groups.items()]
        kept = sorted(sorted(range(len(lines)), key=lambda i: -lines[i].n)[:MOST_LINES])
        left_out = f" (the {MOST_LINES} largest of {len(lines)})" if len(kept) < len(lines) else ""
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", column)
        pictures.append((f"by_{safe}.png", f"by {column}{left_out}", [lines[i] for i in kept]))
    return pictures


def _draw(
    path: Path, title: str, lines: Sequence[Line], measure: str, *, percent: bool, names: Sequence[str] = ()
) -> Path:
    """One line above the other, the first at the top: bars of one model, marks of two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.3 + 0.28 * len(lines) + 0.5 * bool(names)), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scale = 100.0 if percent else 1.0
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_yticks(range(len(lines)), [_label(line) for line in lines], fontsize=9)
    _frame(axes)
    if names:
        _marks(axes, lines, scale, names)
    else:
        _bars(axes, lines, scale)
    if percent:
        axes.set_xlim(0, 100)
    axes.set_xlabel(f"{measure}{', %' if percent else ''}, with 95 % intervals", fontsize=9)
    axes.set_title(f"{measure} {title}".strip(), fontsize=11, loc="left", pad=26 if names else 8)
    _counts(axes, lines)
    labels = axes.get_yticklabels()
    deep = any(line.depth > 1 for line in lines)
    for label, line in zip(labels, lines, strict=True):
        label.set(fontweight="bold" if line.depth == 1 and deep else "normal", horizontalalignment="left")
    widest = max(label.get_window_extent(canvas.get_renderer()).width for label in labels)
    axes.tick_params(axis="y", length=0, pad=widest * 72 / figure.dpi + 6)
    figure.savefig(path)
    return path


def _bars(axes: Axes, lines: Sequence[Line], scale: float) -> None:
    for place, line in enumerate(lines):
        [estimate] = line.estimates
        if estimate["value"] is None:
            continue
        colour = TINTS[min(line.depth, len(TINTS)) - 1] if line.depth else GREY
        axes.barh(place, scale * estimate["value"], height=0.68, color=colour)
        _interval(axes, place, estimate, scale, "black")
    whole = lines[0].estimates[0]["value"]
    if whole is not None:
        axes.axvline(scale * whole, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)


def _marks(axes: Axes, lines: Sequence[Line], scale: float, names: Sequence[str]) -> None:
    """Filled where the two differ by more than chance."""
    for place, line in enumerate(lines):
        for side, estimate in enumerate(line.estimates):
            if estimate["value"] is None:
                continue
            height = place + (-0.17, 0.17)[side]
            _interval(axes, height, estimate, scale, COLOURS[side])
            fill = COLOURS[side] if line.told else "white"
            axes.plot(scale * estimate["value"], height, MARKS[side], color=COLOURS[side], markerfacecolor=fill,
                      markersize=5.5, zorder=3, clip_on=False)  # fmt: skip
    keys = [
        axes.plot([], [], mark, color=colour, label=f"{letter}: {_shortened(name)}")[0]
        for letter, name, mark, colour in zip("AB", names, MARKS, COLOURS, strict=True)
    ]
    keys += axes.plot([], [], "D", color=GREY, markerfacecolor="white", label="hollow: may be chance")
    axes.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False, borderpad=0.2
    )


def _interval(axes: Axes, height: float, estimate: Estimate, scale: float, colour: str) -> None:
    low, high = estimate["low"], estimate["high"]
    if low is not None and high is not None:
        axes.hlines(height, scale * low, scale * high, color=colour, linewidth=1.3, zorder=2, clip_on=False)


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=9)


def _counts(axes: Axes, lines: Sequence[Line]) -> None:
    """How many questions each line is of, at the right."""
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(range(len(lines)), [f"n {line.n:,}" for line in lines], fontsize=8, color=GREY)
    counts.tick_params(length=0, pad=8)
    counts.spines["right"].set_visible(False)


def _label(line: Line) -> str:
    return "    " * max(0, line.depth - 1) + _shortened(line.label)


def _shortened(text: str) -> str:
    text = " ".join(text.split()).replace("$", r"\$")  # no formula
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1].rstrip() + "…"
