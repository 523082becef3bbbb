"""Pictures of figures: which there are, how large, and what is written in them."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
from answer_rows import answers, row
from matplotlib.figure import Figure

from openrlhf_ext.evaluation.comparison import compare
from openrlhf_ext.evaluation.figures import summarise
from openrlhf_ext.evaluation.plots import MOST_LINES, write_comparison_plots, write_plots
from openrlhf_ext.evaluation.subjects import load_taxonomy

RATE = {"name": "accuracy", "outcome": "right"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that were saved, by their files' names; they are saved all the same."""
    found: dict[str, Figure] = {}
    save = Figure.savefig

    def saved(self: Figure, path: Path, **options: object) -> None:
        found[path.name] = self
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


def labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_a_hierarchy_of_three_levels(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    (tmp_path / "t.yaml").write_text("1: Heart\n1.4: Rhythm, which costs $5 and $6\n1.4.2: Fibrillation\n2: Lung\n")
    rows = [row(f"q{i}", "right" if i % 3 else "wrong", columns={"s": "1.4.2" if i % 2 else "2"}) for i in range(20)]
    rows.append(row("other", "wrong", columns={"s": "9"}))
    found = summarise(rows, groups=("s",), subject_column="s", taxonomy=load_taxonomy(tmp_path / "t.yaml"))
    assert [path.name for path in write_plots(tmp_path, found, RATE)] == ["subjects.png", "by_s.png"]
    assert matplotlib.image.imread(tmp_path / "subjects.png").shape[1] == 1350
    axes = drawn["subjects.png"].axes[0]
    assert labels(drawn["subjects.png"]) == [
        "all", "1 Heart", r"    1.4 Rhythm, which costs \$5 and \$6", "        1.4.2 Fibrillation", "2 Lung",
        "(no known subject)",
    ]  # fmt: skip
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[0] == pytest.approx(100 * found["all"]["accuracy"]["value"])
    assert len(set(widths[1:4])) == 1 and widths[-1] == 0
    # Every label ends before the axes begin, and the picture holds it.
    left = axes.get_window_extent().x0
    extents = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(extent.x0 >= 0 and extent.x1 < left for extent in extents), (left, extents)


def test_too_many_lines_are_left_out_and_it_is_said(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    rows = [row(f"{i}.{j}", "right", columns={"s": f"{i}.{j}", "k": f"{i}.{j}"}) for i in range(9) for j in range(9)]
    write_plots(tmp_path, summarise(rows, groups=("k",), subject_column="s"), RATE)
    assert len(labels(drawn["subjects.png"])) == 1 + 9
    assert "81 of 90 not shown" in drawn["subjects.png"].axes[0].get_title("left")
    assert len(labels(drawn["by_k.png"])) == 1 + MOST_LINES
    assert f"the {MOST_LINES} largest of 81" in drawn["by_k.png"].axes[0].get_title("left")


def test_scores_are_drawn_where_nothing_is_rated(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    rows = [row(f"q{i}", "ungraded", score=i / 3, columns={"a/b": i % 2}) for i in range(12)]
    [path] = write_plots(tmp_path, summarise(rows, groups=("a/b",)), RATE)
    assert path.name == "by_a_b.png"
    assert drawn[path.name].axes[0].get_xlabel().startswith("mean score, with")
    assert drawn[path.name].axes[0].patches[0].get_width() == pytest.approx(11 / 6)


def test_two_models_side_by_side(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    a, b = ([row(f"q{i}", outcome, columns={"kind": "x" if i < 15 else "y"}) for i, outcome in enumerate(table)]
            for table in (["wrong"] * 20, ["right"] * 15 + ["wrong"] * 5))  # fmt: skip
    found = compare(a, b, groups=("kind",))
    files = write_comparison_plots(tmp_path, found, ["outputs/a", "outputs/b"], "accuracy")
    assert [path.name for path in files] == ["comparison.png", "comparison_by_kind.png"]
    axes = drawn["comparison_by_kind.png"].axes[0]
    marks = [line for line in axes.get_lines() if len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in marks] == [0, 75, 0, 100, 0, 0]
    hollow = [line.get_markerfacecolor() == "white" for line in marks]
    assert hollow == [False, False, False, False, True, True]
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["A: outputs/a", "B: outputs/b"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert write_plots(tmp_path, summarise(answers("rw")), RATE) == []
    ungraded = answers("gg")
    assert write_comparison_plots(tmp_path, compare(ungraded, ungraded), "AB", "accuracy") == []
