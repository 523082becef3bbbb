"""The hallucination story: its stand-in for a reader at the real page, and the whole of it on a few made-up rows."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "dpo_hallucination"
PROGRAM = [sys.executable, "-m", "openrlhf_ext.cli.main"]
SUBJECTS = ("Aspirin", "Warfarin", "Insulin", "Zinc", "Iron", "Surgery", "Exercise", "Vaccination", "Sleep", "Coffee")
EFFECTS = ("lowered the risk of stroke", "shortened recovery after fractures", "improved vision in older patients")


@pytest.fixture
def rater(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    found = importlib.import_module("rater")
    monkeypatch.delitem(sys.modules, "rater")
    return found


def ours(*command: str) -> str:
    done = subprocess.run([*PROGRAM, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_stand_in_judges_at_the_page_and_its_judgements_are_pairs(rater: ModuleType, tmp_path: Path) -> None:
    abstract = "Aspirin lowered the risk of stroke in older patients."
    answers = ["Aspirin lowered the risk of stroke.", "Unicorns cured everybody overnight.", ""]
    shared = {"abstract": abstract, "truth": "Aspirin lowered the risk."}
    rows = [{"prompt": f"{n}: does it help?", "answer": answer, **shared} for n, answer in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = ["--assess.folder", str(tmp_path / "assessment")]
    columns = ["--data.context_key", "abstract", "--data.reference_key", "truth"]
    serve = ["assess", "serve", *folder, "--data.dataset", str(tmp_path / "rows.jsonl"), *columns, "--port", "0"]
    with subprocess.Popen([*PROGRAM, *serve], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            link = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/", line)))
            assert rater.judge_all(link) == 3
            assert rater.judge_all(link) == 0, "what is judged already is left alone"
        finally:
            server.terminate()
    report = json.loads(ours("assess", "report", *folder, "--json"))
    assert (report["judgements"], report["models"][0]["hallucinated"]) == (3, 2)
    pairs = tmp_path / "pairs.jsonl"
    ours("assess", "export", *folder, "--export.preferences", str(pairs), "--export.with_references")
    (pair,) = (json.loads(line) for line in pairs.read_text().splitlines())
    assert (pair["chosen"], pair["rejected"]) == ("Aspirin lowered the risk.", answers[1])


def row(n: int) -> dict[str, Any]:
    """As MedHallu's: an abstract, a question, a true answer and a hallucinated one."""
    subject, effect = SUBJECTS[n % len(SUBJECTS)], EFFECTS[n % len(EFFECTS)]
    return {
        "question": f"Does {subject.lower()} help {n} patients?",
        "knowledge": str({"contexts": [f"{subject} was given to {n} patients.", f"{subject} {effect}."]}),
        "ground_truth": f"{subject} {effect}.",
        "least_similar_answer": f"{subject} caused unexpected complications among nurses.",
        "final_difficulty_level": ("easy", "hard")[n % 2],
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_story_on_made_up_rows(tmp_path: Path) -> None:
    source, out = tmp_path / "medhallu.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(row(n)) + "\n" for n in range(120)), encoding="utf-8")
    command = [sys.executable, str(FOLDER / "story.py"), str(source), "--output", str(out), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in "AB":
        result = json.loads((out / f"eval_{stage}" / "result.json").read_text())
        assert result["answerer"]["name"] == f"stage {stage}"
        assert result["figures"]["all"]["questions"] == 12
        assert result["rate"]["name"] == "hallucination rate"
    assert "a scripted stand-in does" in done.stdout
    assert "20 judged by the stand-in" in done.stdout
    report = json.loads(ours("assess", "report", "--assess.folder", str(out / "assess_scripted"), "--json"))
    assert report["judgements"] == 20
    assert {model["name"] for model in report["models"]} == {"stage A", "stage B"}
    pairs = (out / "data" / "assess_scripted_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"prompt", "chosen", "rejected"} <= json.loads(pairs[0]).keys()
    assert json.loads((out / "C" / "result.json").read_text())["steps"] == -(-len(pairs) // 4)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "stage A: sft" not in again.stdout, "what is done is not done again"
