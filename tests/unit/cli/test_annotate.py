"""`annotate` against a real endpoint: subjects by a rule, what a kill leaves, files of others, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openrlhf_ext.cli.annotate import main
from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.data.tables import load_rows
from openrlhf_ext.errors import ConfigError, DataError, ResourceError, UserError
from openrlhf_ext.evaluation.answers import AnswerRow
from openrlhf_ext.evaluation.figures import summarise
from openrlhf_ext.evaluation.subjects import load_taxonomy

sys.path.append(str(Path(__file__).resolve().parents[1] / "rewards/judge"))
from openai_server import OpenAIServer, split

TAXONOMY = "1: Heart\n1.4: Rhythm\n1.4.2: Fibrillation\n2: Lung\n2.1: Asthma\n"
QUESTIONS = [f"{word} {i}" for i in range(8) for word in ("fibrillation", "asthma", "both")]


def by_word(prompt: str) -> Any:
    """What is in the data decides, as a model would; a reply to a trial question follows its schema."""
    _, inside = split(prompt)
    if not inside:
        return {"ready": True}
    word = inside[0].split()[0]
    subjects = {"fibrillation": ["1.4.2"], "asthma": ["2.1"], "both": ["1.4.2", "2.1"]}[word]
    return {"reason": f"it says {word}", "subjects": subjects, "primary": subjects[-1]}


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    server = OpenAIServer(by_word).start()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taxonomy.yaml").write_text(TAXONOMY)
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    return tmp_path


def write_rows(path: Path, questions: list[str]) -> None:
    path.write_text("".join(json.dumps({"question": each, "n": i}) + "\n" for i, each in enumerate(questions)))


def flags(server: OpenAIServer, more: str = "") -> list[str]:
    common = (
        f"--judge.url {server.url} --judge.served_model_name judge --judge.max_retries 0 --data.dataset rows.jsonl "
        "--data.shown_keys question --annotate.taxonomy taxonomy.yaml --annotate.output out.jsonl"
    )
    return f"{common} {more}".split()


def asked(server: OpenAIServer) -> Counter[str]:
    """How often each row's text was asked for."""
    prompts = [request["messages"][-1]["content"] for request in server.requests]
    return Counter(inside[0] for inside in (split(prompt)[1] for prompt in prompts) if inside)


def written() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_rows_get_their_subjects(folder: Path, server: OpenAIServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["annotate", *flags(server, "--json --annotate.batch_size 5")]) == 0
    rows = written()
    assert [row["question"] for row in rows] == QUESTIONS and [row["n"] for row in rows] == list(range(24))
    assert rows[2] == {"question": "both 0", "n": 2, "subjects": ["1.4.2", "2.1"], "subjects_primary": "2.1",
                       "subjects_reason": "it says both", "subjects_repairs": []}  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["subjects"] == {"1": 16, "1.4": 16, "1.4.2": 16, "2": 16, "2.1": 16}
    assert (result["annotated"], result["as_given"], result["costs"]["judge/asked"]) == (24, 24, 24)
    assert result["costs"]["judge/answer_tokens"] == 24 * 7
    body = next(request for request in server.requests if "subjects" in str(request.get("response_format")))
    assert body["response_format"]["json_schema"]["schema"]["properties"]["primary"]["enum"][-1] == "UNKNOWN"


def test_the_file_is_read_as_data_with_subjects(folder: Path, server: OpenAIServer) -> None:
    assert main(flags(server)) == 0
    rows = load_rows("out.jsonl")
    answers = [AnswerRow(str(i), 0, "s", "", "", "right", columns=row.values) for i, row in enumerate(rows)]
    found = summarise(answers, subject_column="subjects", taxonomy=load_taxonomy("taxonomy.yaml"))["subjects"]
    assert [(node["id"], node["name"], node["questions"]) for node in found["nodes"]] == [
        ("1", "Heart", 16), ("1.4", "Rhythm", 16), ("1.4.2", "Fibrillation", 16), ("2", "Lung", 16),
        ("2.1", "Asthma", 16),
    ]  # fmt: skip


def test_killed_and_run_again_it_asks_for_what_is_missing(folder: Path, server: OpenAIServer) -> None:
    server.always = ("slow", 0.15)
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "openrlhf_ext.cli.annotate",
            *flags(server, "--annotate.batch_size 4 --judge.concurrency 4"),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not Path("out.jsonl").exists() or len(written_lines()) < 8:
            assert run.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    kept = written_lines()
    assert 8 <= len(kept) < 24
    before = asked(server)
    with Path("out.jsonl").open("a") as file:
        file.write('{"question": "torn')  # as a kill within a write leaves it
    server.always = None
    server.requests.clear()
    assert main(flags(server)) == 0
    after = asked(server)
    done = {json.loads(line)["question"] for line in kept}
    assert set(after) == set(QUESTIONS) - done and set(after.values()) == {1}
    assert set(before.values()) == {1}
    assert written_lines()[: len(kept)] == kept
    assert sorted(row["n"] for row in written()) == list(range(24))
    server.requests.clear()
    assert main(flags(server)) == 0  # nothing is missing: nobody is asked, the endpoint not even tried
    assert not server.requests


def written_lines() -> list[str]:
    return Path("out.jsonl").read_text().split("\n")[:-1]


def test_what_was_mended_is_counted_over_all_runs(
    folder: Path, server: OpenAIServer, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(folder / "rows.jsonl", QUESTIONS[:3])
    server.reactions.extend([None, '{"subjects": ["1.4.2 Fibrillation", "7"], "primary": "2"}'])
    assert main(flags(server, "--json --annotate.batch_size 1")) == 0
    capsys.readouterr()
    assert main(flags(server, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mended"] == {"odd_id": 1, "unknown_id": 1, "primary_added": 1}
    assert (result["unknown_ids"], result["as_given"]) == ({"7": 1}, 2)
    assert main(flags(server)) == 0
    shown = capsys.readouterr().out
    assert "ids that the taxonomy does not have, left out: 7 1" in shown and "1.4.2 Fibrillation" in shown


def test_a_row_without_an_answer_is_asked_for_again(folder: Path, server: OpenAIServer) -> None:
    server.reactions.extend([None, 400, "no JSON"])  # the trial question, a refusal, and what is no answer
    assert main(flags(server, "--judge.concurrency 1")) == 0 or len(written()) < 24
    first = len(written())
    assert first == 23  # what is no answer was asked for once more at once
    assert main(flags(server)) == 0
    assert len(written()) == 24


def test_a_judge_that_answers_nothing_ends_the_command(folder: Path, server: OpenAIServer) -> None:
    server.reactions.extend([None] * 9)
    server.always = 400
    with pytest.raises(ResourceError, match=r"no subjects to any of 8 rows .* 8 rows are in out\.jsonl"):
        main(flags(server, "--annotate.batch_size 8"))
    assert len(written()) == 8


def test_equal_rows_are_asked_for_once_and_written_each(folder: Path, server: OpenAIServer) -> None:
    row = json.dumps({"question": "asthma"}) + "\n"
    (folder / "rows.jsonl").write_text(row * 5)
    assert main(flags(server)) == 0
    assert len(written()) == 5 and asked(server) == {"asthma": 1}


def refused(error: type[UserError], words: str, argv: list[str]) -> None:
    before = {path: path.read_bytes() for path in Path().iterdir()}
    with pytest.raises(error, match=re.escape(words)) as caught:
        main(argv)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_the_file_of_another_run_is_left_alone(folder: Path, server: OpenAIServer) -> None:
    assert main(flags(server)) == 0
    refused(
        DataError,
        "was annotated with another judge (judge; now other)",
        flags(server, "--judge.served_model_name other"),
    )
    (folder / "taxonomy.yaml").write_text(TAXONOMY + "3: Liver\n")
    refused(DataError, "was annotated with another taxonomy", flags(server))
    (folder / "taxonomy.yaml").write_text(TAXONOMY)
    refused(DataError, "another set of columns shown (['question']; now ['question', 'n'])",
            flags(server, "--data.shown_keys question n"))  # fmt: skip
    write_rows(folder / "rows.jsonl", ["asthma 99", *QUESTIONS[1:]])
    refused(DataError, "out.jsonl holds 1 row that the data does not have", flags(server))
    (folder / "out.about.json").unlink()
    refused(DataError, "no out.about.json says that annotate wrote it", flags(server))


def test_bad_input_is_a_sentence_before_anything_is_asked(folder: Path, server: OpenAIServer) -> None:
    refused(DataError, "has no column 'text' (--data.shown_keys)", flags(server, "--data.shown_keys text"))
    refused(DataError, "the taxonomy none.yaml does not exist", flags(server, "--annotate.taxonomy none.yaml"))
    refused(DataError, "has no column 'id'", flags(server, "--annotate.taxonomy rows.jsonl"))
    refused(DataError, "have a column 'n' already", flags(server, "--annotate.column n"))
    refused(DataError, "does not exist", flags(server, "--data.dataset none.jsonl"))
    refused(ConfigError, "give it a name that ends in .jsonl", flags(server, "--annotate.output out.csv"))
    assert not server.requests
    with pytest.raises(ConfigError) as caught:
        main([])
    for flag in ("--data.dataset", "--data.shown_keys", "--annotate.taxonomy", "--annotate.output",
                 "--judge.model_name_or_path"):  # fmt: skip
        assert f"{flag}: it is required" in str(caught.value)
