"""`openrlhf-ext assess`: folders made and gone on with, tables and data sets, and one sentence for what is no use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf_ext.assess.assessment import ASSESSMENT, JUDGEMENTS, read_assessment
from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.verdicts import Hallucination
from openrlhf_ext.cli.assess import main
from openrlhf_ext.cli.assess_serve import open_assessment
from openrlhf_ext.config import parse
from openrlhf_ext.config.assess import AssessConfig
from openrlhf_ext.errors import DataError, UserError
from openrlhf_ext.evaluation.answers import Answerer, AnswerRow, content_keys, write_answers
from openrlhf_ext.rewards.server import listen

ROWS = [{"q": f"q{i}?", "good": f"good {i}", "bad": f"bad {i}", "src": [f"s{i}", "t"], "flag": i % 2} for i in range(6)]
OF_ROWS = "--data.dataset rows.jsonl --data.prompt_key q --data.answer_key good"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "none.jsonl").write_text("")
    for name, fingerprint in (("a", "f1"), ("b", "f2"), ("later", "f3")):
        rows = [
            AnswerRow(
                key, 0, "rows", row["q"], row["good" if name == "a" else "bad"], "right", score=float(name == "b")
            )
            for key, row in zip(content_keys((row["q"], None, None) for row in ROWS), ROWS)
        ]
        write_answers(tmp_path / name, Answerer(name, fingerprint), rows)
    return tmp_path


def opened(line: str):
    return open_assessment(parse(AssessConfig, line.split()))


def refused(line: str) -> str:
    """What the command says; no file but those that are there is left or changed."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(UserError) as raised:
        main(line.split())
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    said = str(raised.value)
    assert said.endswith(".") and "\n" not in said
    return said


def judge_all(folder: Path, rater: str) -> None:
    assessment = read_assessment(folder)
    desk = Desk(assessment, JudgementLog(folder / JUDGEMENTS, assessment), rater)
    for key in desk.keys:
        bad = desk.sheet(key).answers[0].startswith("bad")
        desk.judge(key, Hallucination(bad, "contradiction" if bad else None), seconds=2)


def test_tables_of_eval_and_a_folder_that_is_gone_on_with(folder: Path) -> None:
    made = opened("--assess.folder new --assess.answers a b --assess.raters anna ben --assess.overlap 4")
    assert [model.name for model in made.models] == ["a", "b"] and len(made.items) == 12
    assert len(made.shared()) == 4
    assert opened("--assess.folder new") == made
    assert opened("--assess.folder new --assess.answers a b") == made
    assert opened("--assess.folder new --assess.answers a b --assess.raters anna ben --assess.overlap 4") == made


def test_a_draw_is_the_same_when_it_is_gone_on_with(folder: Path) -> None:
    made = opened("--assess.folder new --assess.answers a b --assess.items 5")
    assert len(made.items) == 5
    assert opened("--assess.folder new --assess.answers a b --assess.items 5") == made
    assert opened("--assess.folder new --assess.answers a b") == made
    assert "its 5 items are not the 6 that are given" in refused(
        "--assess.folder new --assess.answers a b --assess.items 6"
    )
    assert "has 5 items, which stay" in refused("--assess.folder new --assess.items 6")


def test_rows_of_any_data_set(folder: Path) -> None:
    more = "--data.context_key src --data.reference_key bad --data.verdict_key flag"
    made = opened(f"--assess.folder new {OF_ROWS} {more} --data.model mine")
    item = next(item for item in made.items if item.answers[0].text == "good 3")
    assert (item.prompt, item.context, item.reference, item.answers[0].judged) == ("q3?", "s3\n\nt", "bad 3", True)
    assert made.models[0].name == "mine"
    pairs = opened(f"--assess.folder pairs {OF_ROWS} --data.other_answer_key bad --assess.task preference")
    assert [model.name for model in pairs.models] == ["good of rows.jsonl", "bad of rows.jsonl"]
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("good 3", "good III"))
    assert "of mine with fingerprint" in refused(f"--assess.folder new {OF_ROWS} {more} --data.model mine")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("serve", "--assess.folder: it is required"),
        ("--assess.folder new", "--assess.answers: it is required, because new holds no assessment yet"),
        ("--assess.folder new --assess.answers nowhere", "nowhere does not exist: give a folder"),
        ("--assess.folder new --assess.answers a a", "a and a are the same model"),
        ("--assess.folder new --assess.answers a b later", "name one folder, or two"),
        ("--assess.folder new --assess.answers a --assess.task preference", "a preference is between two"),
        ("--assess.folder new --assess.answers a --data.dataset rows.jsonl", "names other answers"),
        ("--assess.folder new --assess.answers a --data.prompt_key q", "no effect without --data.dataset"),
        ("--assess.folder new --data.dataset rows.jsonl", "has no column 'prompt' (--data.prompt_key)"),
        (f"--assess.folder new {OF_ROWS} --data.context_key src2", "has no column 'src2' (--data.context_key)"),
        ("--assess.folder new --data.dataset rows.jsonl --data.prompt_key q --data.answer_key flag", "not a text"),
        (f"--assess.folder new {OF_ROWS} --data.verdict_key bad", "the verdict 'bad 0'"),
        ("--assess.folder new --data.dataset none.jsonl", "none.jsonl has no rows"),
        ("--assess.folder new --assess.answers a --assess.raters anna Anna", "a name of their own"),
        ("--assess.folder new --assess.answers a --assess.overlap 7", "there are 6 items"),
        ("--assess.folder new --assess.answers a --tui --assess.rater carl", "'carl' is no rater"),
        ("--assess.folder new --assess.answers a --assess.rater rater", "it is for --tui"),
        ("--assess.folder new --assess.answers a --tui --port 0", "it is of the page"),
        ("--assess.folder new --assess.answers a --tui --assess.raters anna ben", "name one of anna, ben"),
        ("--assess.folder rows.jsonl/x --assess.answers a", "cannot be written"),
        ("report --assess.folder nowhere", "nowhere/assessment.json does not exist"),
        ("export --assess.folder nowhere", "--export.judgements: it is required"),
        ("export --assess.folder nowhere --export.judgements x.csv", "a name that ends in .jsonl"),
        ("exprot", "did you mean export"),
    ],
)  # fmt: skip
def test_what_is_no_use_is_one_sentence(line: str, said: str) -> None:
    assert said in refused(line)


def test_another_model_in_the_same_folder(folder: Path) -> None:
    opened("--assess.folder new --assess.answers a --assess.raters anna ben")
    judge_all(folder / "new", "anna")
    said = refused("--assess.folder new --assess.answers later")
    assert "of a with fingerprint f1, not later with f3" in said
    assert "its raters are anna, ben" in refused("--assess.folder new --assess.raters carl")
    assert "name one of anna, ben" in refused("--assess.folder new --tui")
    (folder / "new" / JUDGEMENTS).write_text('{"half\n' + (folder / "new" / JUDGEMENTS).read_text())
    assert f"{JUDGEMENTS}, line 1: it is no judgement" in refused("report --assess.folder new")
    (folder / "new" / ASSESSMENT).unlink()
    assert "put that file back" in refused("--assess.folder new --assess.answers a")


def test_a_port_in_use(folder: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in refused(f"--assess.folder new --assess.answers a --port {port}")


def test_a_torn_line_is_mended_with_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened("--assess.folder new --assess.answers a")
    judge_all(folder / "new", "rater")
    whole = (folder / "new" / JUDGEMENTS).read_bytes()
    (folder / "new" / JUDGEMENTS).write_bytes(whole + b'{"id": "x')
    assert main(["report", "--assess.folder", "new", "--json"]) == 0
    captured = capsys.readouterr()
    assert "the last line was torn (9 bytes" in captured.err.replace("\n", " ")
    assert json.loads(captured.out)["judgements"] == 6
    assert (folder / "new" / JUDGEMENTS).read_bytes() == whole


def test_a_report_and_an_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened("--assess.folder new --assess.answers a b --assess.raters anna ben")
    assert "holds no judgement yet" in refused_report(folder)
    judge_all(folder / "new", "anna")
    judge_all(folder / "new", "ben")
    capsys.readouterr()
    assert main(["report", "--assess.folder", "new"]) == 0
    said = capsys.readouterr().out
    assert "a: 0 of 6: 0 %, 95 % interval 0 % to 39 % hallucinated" in said
    assert "b: refuted: it is not at most 15 %" in said
    assert "anna and ben: Cohen's kappa" in said and "Krippendorff's alpha" in said
    line = "export --assess.folder new --export.judgements out/all.jsonl --export.preferences out/pairs.jsonl"
    assert main(line.split()) == 0
    assert (
        "24 judgements in out/all.jsonl\n6 preferences in out/pairs.jsonl; left out: nothing" in capsys.readouterr().out
    )
    rows = [json.loads(row) for row in Path("out/pairs.jsonl").read_text().splitlines()]
    assert {(row["chosen"][:4], row["rejected"][:3]) for row in rows} == {("good", "bad")}
    assert "out/all.jsonl is there already" in refused(line)
    assert main([*line.split(), "--export.overwrite"]) == 0


def refused_report(folder: Path) -> str:
    opened("--assess.folder new")
    with pytest.raises(DataError) as raised:
        main(["report", "--assess.folder", "new"])
    return str(raised.value)


def test_no_preference_is_no_file(folder: Path) -> None:
    opened("--assess.folder new --assess.answers a")
    judge_all(folder / "new", "rater")
    said = refused("export --assess.folder new --export.judgements j.jsonl --export.preferences p.jsonl")
    assert "6 prompts without one of each" in said


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["serve", "--help"], ["report", "--help"], ["export", "--help", "export"]]
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "openrlhf-ext assess" in said or "--export.judgements" in said
