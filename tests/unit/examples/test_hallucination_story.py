"""The cheap parts of the hallucination story: the stand-in's rule, the judge's questions, the rows."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from openrlhf_ext.rewards.judge.rubric_file import load_rubric

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "dpo_hallucination"
SOURCE = "Aspirin lowered the risk of stroke in older patients. Does aspirin help?"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """As the script imports them: from its own folder."""
    import importlib

    monkeypatch.syspath_prepend(str(FOLDER))
    found = {name: importlib.import_module(name) for name in ("convert", "rater", "story")}
    for name in found:
        del sys.modules[name]  # not by monkeypatch, which would bring it back: other examples have these names too
    return found


@pytest.mark.parametrize(
    ("answer", "passages"),
    [
        ("Aspirin lowered the risk of stroke.", []),
        ("Aspirin lowered the risk. Headaches vanished within minutes.", ["Headaches vanished within minutes."]),
        ("Zinc cured diabetes! Stroke risk lowered. Iron mends eyes", ["Zinc cured diabetes!", "Iron mends eyes"]),
    ],
)
def test_a_sentence_of_words_that_the_source_lacks_is_unsupported(
    modules: dict[str, ModuleType], answer: str, passages: list[str]
) -> None:
    found = modules["rater"].verdict_on(answer, SOURCE)
    assert [answer[start:end] for start, end in found["spans"]] == passages
    assert found["present"] == bool(passages)
    assert found["kind"] == ("unsupported_detail" if passages else None)


@pytest.mark.parametrize("answer", ["", " \n", "12 3."])
def test_an_answer_without_a_word_is_hallucinated(modules: dict[str, ModuleType], answer: str) -> None:
    assert modules["rater"].verdict_on(answer, SOURCE) == {"present": True, "kind": "unsupported_detail", "spans": []}


def medhallu(folder: Path, rows: int) -> Path:
    path = folder / "medhallu.jsonl"
    path.write_text("".join(json.dumps(medhallu_row(n)) + "\n" for n in range(rows)), encoding="utf-8")
    return path


def medhallu_row(n: int) -> dict[str, Any]:
    return {
        "question": f"Does drug {n} help?",
        "knowledge": str({"contexts": [f"Drug {n} was given.\u2028It helped {n} patients of ten."]}),
        "ground_truth": f"It helped {n} patients.",
        "least_similar_answer": f"It harmed {n} nurses.",
        "final_difficulty_level": "easy" if n % 2 else "hard",
    }


def test_the_tiny_judge_learns_from_the_questions_that_it_is_asked_later(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    unset = dict.fromkeys(("model", "judge", "rows", "judged"))
    given = argparse.Namespace(medhallu=medhallu(tmp_path, 12), output=tmp_path / "out", device="cpu", **unset)
    story = modules["story"].Story(given, [])
    story.rows()
    assert load_rubric(story.rubric).criteria[0].name == "hallucinated"
    modules["story"].write_judged(story.train, story.rubric, tmp_path / "judge.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "judge.jsonl").open(encoding="utf-8")]
    assert len(rows) == 2 * 10  # every tenth pair, from the first, is held out
    assert [json.loads(row["verdict"])["hallucinated"] for row in rows] == [False, True] * 10
    assert "It helped 1 patients." in rows[0]["question"] and "It harmed 1 nurses." in rows[1]["question"]
    assert all("patients of ten" in row["question"] for row in rows)
