"""`eval --compare A B` end to end on results as `eval` writes them; no model is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from openrlhf_ext.cli.eval import main
from openrlhf_ext.errors import ConfigError, DataError, UserError
from openrlhf_ext.evaluation.answers import RESULT, Answerer, AnswerRow, content_keys, write_answers
from openrlhf_ext.evaluation.figures import summarise
from openrlhf_ext.evaluation.record import EvaluationRecord
from openrlhf_ext.evaluation.subjects import load_taxonomy

TAXONOMY = "1: Heart\n1.4: Rhythm\n1.4.2: Fibrillation\n2: Lung\n"
RATE = {"name": "accuracy", "outcome": "right", "better": "high"}
SETTINGS = {"the rows": "x", "sampling": {"temperature": 0.0}}


def answered(outcomes: Sequence[str], first: int = 0) -> list[AnswerRow]:
    numbers = range(first, first + len(outcomes))
    keys = content_keys((f"question {i}", None, None) for i in numbers)
    subjects = ("1.4.2", "2", ["1.4", "2"], "9.9")
    return [
        AnswerRow(key, 0, "set", f"question {i}", "an answer", outcome,  # type: ignore[arg-type]
                  score=float(outcome == "right"), columns={"subject": subjects[i % 4], "level": i % 2})
        for i, key, outcome in zip(numbers, keys, outcomes, strict=True)
    ]  # fmt: skip


def results(folder: str, rows: Sequence[AnswerRow], **changes: Any) -> None:
    answerer = Answerer(f"outputs/{folder}", f"weights of {folder}")
    Path("taxonomy.yaml").write_text(TAXONOMY)
    figures = summarise(rows, groups=("level",), subject_column="subject", taxonomy=load_taxonomy("taxonomy.yaml"))
    result = {"rate": RATE, "rule": "exact match", "settings": SETTINGS, "figures": figures, "against": None} | changes
    write_answers(Path(folder), changes.get("answerer", answerer), rows)
    (Path(folder) / RESULT).write_text(json.dumps({k: v for k, v in result.items() if k != "answerer"}))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(part: float, n: int, seed: int) -> list[str]:
    return ["right" if right else "wrong" for right in np.random.default_rng(seed).random(n) < part]


def test_a_table_a_sentence_a_file_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = drawn(0.4, 160, 0), drawn(0.65, 160, 1)
    results("a", answered(a))
    results("b", answered(b)[::-1])
    assert main(["--compare", "a", "b", "--eval.output", "compared"]) == 0
    shown = capsys.readouterr().out
    table = [[sum(x == r and y == s for x, y in zip(a, b, strict=True)) for s in ("right", "wrong")]
             for r in ("right", "wrong")]  # fmt: skip
    found = json.loads(Path("compared/comparison.json").read_text())
    whole = found["compared"]["rate"]
    assert whole["p"] == pytest.approx(mcnemar(table, exact=sum(table[0]) < 0, correction=False).pvalue)
    assert (whole["only_a"], whole["only_b"], whole["n"]) == (table[0][1], table[1][0], 160)
    assert found["sentences"][0] in shown and "more than chance, B is better." in shown
    for words in ("A: outputs/a (a)", "level = 0", "    1.4.2 Fibrillation", "(no known subject)", "9.9 (40)"):
        assert words in shown
    assert {path.name for path in Path("compared").iterdir()} == {
        "comparison.json", "comparison.png", "comparison_by_level.png",
    }  # fmt: skip
    assert main(["--compare", "a", "b", "--eval.output", "compared", "--json"]) == 0  # the same comparison again
    assert json.loads(capsys.readouterr().out) == found


def test_a_model_that_falls_silent_does_not_pass_for_a_better_one(capsys: pytest.CaptureFixture[str]) -> None:
    rate = {"name": "hallucination rate", "outcome": "wrong", "better": "low"}
    results("a", answered(["wrong"] * 20), rate=rate)
    results("b", answered(["truncated"] * 15 + ["unanswered"] * 5), rate=rate)
    assert main(["--compare", "a", "b", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("A has 0 of 20 answers that say nothing")
    assert "B 20 of 20" in warning


def test_evaluations_that_training_left_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    record = EvaluationRecord(Path("evaluations"), "out", "run", "exact", SETTINGS, groups=("level",))
    record.keep(0, answered(drawn(0.1, 60, 0)))
    record.keep(100, answered(drawn(0.9, 60, 1)))
    assert main(["--compare", "evaluations/step-00000000", "evaluations/step-00000100"]) == 0
    shown = capsys.readouterr().out
    assert "A: out step 0" in shown and "more than chance, B is better." in shown


def test_groups_and_subjects_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        results(name, answered(drawn(0.5, 40, seed)))
    Path("other.yaml").write_text("2: Breath\n")
    flags = "--eval.group_by source --eval.subject_column subject --eval.taxonomy other.yaml --json"
    assert main(f"--compare a b {flags}".split()) == 0
    found = json.loads(capsys.readouterr().out)["compared"]
    assert list(found["groups"]) == ["source"]
    assert [(node["id"], node["name"]) for node in found["subjects"]["nodes"]] == [("2", "Breath")]
    assert found["subjects"]["unknown"] == {"1.4": 10, "1.4.2": 10, "9.9": 10}
    assert not list(Path().glob("*.png"))


def test_what_is_doubtful_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    results("a", answered(["right"] * 8 + ["failed"]))
    results("b", answered(["wrong"] * 9, first=2), settings={**SETTINGS, "sampling": {"temperature": 1.0}})
    assert main(["--compare", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert "WARNING: A and B differ in more than their models: sampling" in shown
    assert "2 only A has, 2 only B has, 1 of which one has no answer that could be rated" in shown
    results("c", answered(["right"] * 9), answerer=Answerer("outputs/a", "weights of a"),
            settings={**SETTINGS, "prompt": "another"})  # fmt: skip
    assert main(["--compare", "a", "c"]) == 0
    assert "WARNING: both are of the same model, outputs/a: what is compared are settings" in capsys.readouterr().out


def test_the_judges_preferences_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    results("a", answered(["right"] * 4))
    figures = {
        "pairs": 4,
        "counts": {"won": 3, "tie": 0, "lost": 1},
        "win_rate": {"value": 0.75, "low": 0.3, "high": 0.95},
    }
    results("b", answered(["right"] * 4), against={"fingerprint": "weights of a", "figures": figures})
    assert main(["--compare", "a", "b"]) == 0
    assert "by the judge B wins 3, ties 0 and loses 1 of 4 pairs: 75 %, a tie being half (30 % to 95 %)" in (
        capsys.readouterr().out
    )


def refused(words: str, argv: str, error: type[UserError] = DataError) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(error, match=re.escape(words)) as caught:
        main(argv.split())
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_what_is_wrong_is_a_sentence_and_nothing_is_written() -> None:
    results("a", answered(["right"] * 4))
    refused("is named twice", "--compare a ./a")
    refused("none is no folder", "--compare a none")
    results("copy", answered(["right"] * 4), answerer=Answerer("outputs/a", "weights of a"))
    refused("are of the same model, outputs/a, by the same settings", "--compare a copy")
    results("rule", answered(["right"] * 4), rule="first letter")
    refused(
        "A (a) has the accuracy by exact match, B (rule) has the accuracy by first letter: evaluate both",
        "--compare a rule",
    )
    results("data", answered(["right"] * 4, first=50))
    refused("none of the 4 questions of A is among the 4 of B", "--compare a data --eval.output compared")
    results("begun", answered(["right"] * 4))
    (Path("begun") / RESULT).unlink()
    refused("the evaluation in begun has not ended", "--compare a begun")
    (Path("begun") / RESULT).write_text("{}")
    refused("was not written by eval", "--compare a begun")
    results("b", answered(["wrong"] * 4))
    refused("no answer has the column 'color'", "--compare a b --eval.group_by color")
    refused("holds the results of a model", "--compare a b --eval.output a")
    assert main(["--compare", "a", "b", "--eval.output", "compared"]) == 0
    results("c", answered(["wrong"] * 4))
    refused("holds another comparison", "--compare a c --eval.output compared")


def test_flags_that_mean_nothing_here_are_refused() -> None:
    results("a", answered(["right"] * 4))
    results("b", answered(["wrong"] * 4))
    refused("--eval.temperature: it has no effect with --compare", "--compare a b --eval.temperature 1", ConfigError)
    refused("--compare a: it takes 2 values", "--compare a", ConfigError)


def test_scores_without_outcomes(capsys: pytest.CaptureFixture[str]) -> None:
    a = [replace(row, outcome="ungraded", score=i / 7) for i, row in enumerate(answered(["right"] * 12))]
    b = [replace(row, outcome="ungraded", score=(row.score or 0.0) + 0.5 + i % 3) for i, row in enumerate(a)]
    results("a", a)
    results("b", b)
    assert main(["--compare", "a", "b", "--eval.output", "compared"]) == 0
    shown = capsys.readouterr().out
    assert "mean score on 12 questions that both have" in shown and "accuracy" not in shown
    assert Path("compared/comparison.png").is_file()
