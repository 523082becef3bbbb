"""MedHallu's rows as preference pairs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from openrlhf_ext.data.tables import load_rows

CONVERT = Path(__file__).resolve().parents[3] / "examples" / "dpo_hallucination" / "convert.py"
MEDHALLU = Path(__file__).resolve().parents[4] / "shared" / "data" / "medhallu" / "medhallu_part.jsonl"
ROW = {
    "question": " Does it help? ",
    "knowledge": "{'contexts': ['First, it\\'s new.', \"Then it helps.\"]}",
    "ground_truth": "It helps. ",
    "least_similar_answer": "It harms.",
    "final_difficulty_level": "hard",
}


@pytest.fixture
def convert() -> ModuleType:
    spec = importlib.util.spec_from_file_location("medhallu_convert", CONVERT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "medhallu.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_gives_a_pair(convert: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = {**ROW, "least_similar_answer": "It helps."}
    target = tmp_path / "made" / "pairs.jsonl"
    assert convert.main([str(written(tmp_path, [ROW, same, {**ROW, "ground_truth": " "}])), str(target)]) == 0
    (pair,) = (json.loads(line) for line in target.read_text().splitlines())
    assert pair["prompt"].endswith("First, it's new.\nThen it helps.\n\nQuestion: Does it help?\n\nAnswer:\n")
    assert {**pair, "prompt": ""} == {
        "prompt": "",
        "chosen": "It helps.",
        "rejected": "It harms.",
        "difficulty": "hard",
        "question": "Does it help?",
        "abstract": "First, it's new.\nThen it helps.",
    }
    assert "2 rows left out" in capsys.readouterr().out


def test_held_out_pairs_are_not_trained_on(convert: ModuleType, tmp_path: Path) -> None:
    rows = [{**ROW, "question": f"Number {n}?"} for n in range(25)]
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    assert convert.main([str(written(tmp_path, rows)), str(train), "--held-out", str(test)]) == 0
    prompts = [[row["prompt"] for row in load_rows(str(path))] for path in (train, test)]
    assert [len(each) for each in prompts] == [22, 3]
    assert len(set(prompts[0]) | set(prompts[1])) == 25


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"Question": "x"}, "line 2: no text in column question, knowledge, ground_truth, least_similar_answer"),
        ({**ROW, "knowledge": "a text"}, "line 2: column knowledge is not the text of a dict"),
        ({**ROW, "knowledge": "{'other': []}"}, "line 2: column knowledge is not the text of a dict"),
        ({**ROW, "ground_truth": None}, "no text in column ground_truth"),
    ],
)
def test_files_that_are_something_else(
    convert: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], said: str
) -> None:
    target = tmp_path / "pairs.jsonl"
    assert convert.main([str(written(tmp_path, [ROW, row])), str(target)]) == 2
    assert said in capsys.readouterr().err
    assert not target.exists()
    assert convert.main([str(tmp_path / "none.jsonl"), str(target)]) == 2
    assert "is not there" in capsys.readouterr().err


@pytest.mark.skipif(not MEDHALLU.is_file(), reason="the rows of MedHallu are not beside this checkout")
def test_real_rows(convert: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "pairs.jsonl"
    assert convert.main([str(MEDHALLU), str(target)]) == 0
    pairs = load_rows(str(target))
    assert len(pairs) == 800
    assert all(pair["chosen"] != pair["rejected"] and "{" not in pair["prompt"][:200] for pair in pairs)
    assert {pair["difficulty"] for pair in pairs} == {"easy", "medium", "hard"}
