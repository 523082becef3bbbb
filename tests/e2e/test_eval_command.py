"""`eval` with a real engine and against a real endpoint: outcomes, figures, the folder, and what is refused."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import MODULES, run

from openrlhf_ext.cli.eval import main
from openrlhf_ext.errors import UserError
from openrlhf_ext.evaluation.agreement import wilson
from openrlhf_ext.evaluation.answers import read_answers
from openrlhf_ext.evaluation.letters import lettered
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit/rewards/judge"))
from openai_server import OpenAIServer, split

MODULES.setdefault("eval", "openrlhf_ext.cli.eval")

COLUMNS = "--data.input_key question --data.label_key answer --data.context_key source"
RUBRIC = """\
instructions: |
  Task: {{ prompt }}
  Response: {{ response }}
criteria:
  - {name: grounded, description: nothing in it is made up, scale: boolean}
reward: {range: [-1, 1]}
"""
SUMS = [(a, b) for a in range(4) for b in range(5)]


def rows() -> list[dict[str, Any]]:
    return [
        {
            "question": f"{a} + {b}?", "answer": "AB"[(a + b) % 2], "source": "sums",
            "kind": "small" if a < 2 else "big", "subject": ["1.1", "2"] if b == 0 else f"1.{b}",
        }
        for a, b in SUMS
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    (tmp_path / "subjects.yaml").write_text('1: {name: Sums, children: {1.1: of one, 1.2: of two}}\n"2": Zero\n')
    return tmp_path


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str], Any]], OpenAIServer]]:
    """Servers that answer by a rule, as a chat model."""
    opened: list[OpenAIServer] = []

    def start(rule: Callable[[str], Any]) -> OpenAIServer:
        opened.append(OpenAIServer(rule).start())
        opened[-1].models = ["model", "judge"]
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def result_in(output: str) -> dict[str, Any]:
    return json.loads(Path(output, "result.json").read_text())


def evaluated(server: OpenAIServer, flags: str, output: str) -> dict[str, Any]:
    model = f"--model.url {server.url} --model.served_model_name model --data.dataset rows.jsonl {COLUMNS}"
    assert main(f"{model} {flags} --eval.output {output}".split()) == 0
    return result_in(output)


def letter(question: str) -> str:
    """Right for sums of small numbers; no answer to one, a sentence that begins with A to another."""
    if "+" not in question:  # the trial question
        return "ready"
    a, b = int(question[0]), int(question[4])
    if (a, b) == (0, 0):
        return "It depends."
    if (a, b) == (0, 2):
        return "A patient has B."
    return f"({'AB'[(a + b + (a >= 2)) % 2]}) because"


def test_a_real_engine_from_rows_to_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_tiny_model(folder / "tiny", TinyShape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=64))
    flags = f"--model.model_name_or_path tiny --data.dataset rows.jsonl {COLUMNS} --data.apply_chat_template"
    flags += " --eval.scorer pattern:^(.) --eval.max_new_tokens 8 --eval.perplexity --eval.group_by kind"
    flags += " --eval.subject_column subject --eval.output out --vllm.kv_cache_gb 0.05 --device cpu"
    output = run("eval", flags.split(), folder)
    assert "20 of 20 answers" in output and "perplexity of 20 references" in output, output

    answerer, answers = read_answers(folder / "out")
    assert answerer.name == "tiny" and len(answers) == 20
    assert {row.finish for row in answers} == {"length"} and {row.tokens for row in answers} == {8}
    assert all(row.outcome in ("right", "wrong", "truncated") for row in answers)
    assert all(row.extracted == row.answer[0] for row in answers if row.outcome != "truncated")
    assert all(row.reference_tokens == 1 and row.reference_logprob < -1 for row in answers)
    assert answers[0].prompt == "0 + 0?" and answers[0].context == "sums"
    assert answers[0].columns == {"kind": "small", "subject": ["1.1", "2"]}
    result = result_in("out")
    figures = result["figures"]
    counted = Counter(row.outcome for row in answers)
    assert figures["all"]["outcomes"] == {name: counted[name] for name in figures["all"]["outcomes"]}
    assert set(figures["groups"]["kind"]) == {"big", "small"}
    assert {node["id"]: node["answers"] for node in figures["subjects"]["nodes"]}["1"] == 20
    assert (folder / "out/subjects.png").is_file()

    # The same again: nothing is overwritten, nothing is asked again, other figures of the same answers are.
    with pytest.raises(UserError, match=r"holds these very results: give --eval\.resume to show them"):
        main(flags.split())
    with pytest.raises(UserError, match=r"by other settings \(scorer\)"):
        main(flags.replace("pattern:^(.)", "exact").split())
    build_tiny_model(folder / "other", TinyShape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=64), seed=7)
    with pytest.raises(UserError, match="holds results of tiny, which is not what other is now"):
        main(flags.replace("path tiny", "path other").split())
    before = (folder / "out/answers.parquet").read_bytes()
    assert main([*flags.split(), "--eval.resume", "--eval.taxonomy", "subjects.yaml", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (folder / "out/answers.parquet").read_bytes() == before
    assert again["figures"]["all"] == figures["all"]
    assert again["figures"]["subjects"]["unknown"] == {"1.3": 4, "1.4": 4}


def test_an_endpoint_and_each_outcome_apart(folder: Path, serve: Any) -> None:
    server = serve(letter)
    result = evaluated(server, "--eval.scorer first_letter --eval.group_by kind", "out")
    whole, groups = result["figures"]["all"], result["figures"]["groups"]["kind"]
    assert {name: n for name, n in whole["outcomes"].items() if n} == {"right": 8, "wrong": 10, "unanswered": 2}
    expected = wilson(8, 20)
    assert whole["accuracy"] == pytest.approx({"value": 0.4, "low": expected.low, "high": expected.high})
    assert groups["big"]["accuracy"]["value"] == 0.0 and groups["small"]["accuracy"]["value"] == 0.8
    assert result["rate"] == {"name": "accuracy", "outcome": "right", "better": "high"}
    assert result["answerer"]["fingerprint"] == f"model at {server.url}"
    _, answers = read_answers(folder / "out")
    assert all(row.extracted == lettered(row.answer) for row in answers)
    # one request with the row's own words to each row, after the trial question
    assert sorted(each["messages"][0]["content"] for each in server.requests[1:]) == [f"{a} + {b}?" for a, b in SUMS]
    assert all("response_format" not in body and body["temperature"] == 0.0 for body in server.requests)


def test_what_an_endpoint_did_not_answer_is_failed_and_asked_again(folder: Path, serve: Any) -> None:
    server = serve(letter)
    server.reactions.extend([None, 400, {"choices": []}])  # the trial question, then two rows
    flags = "--eval.scorer first_letter --model.max_retries 0 --model.concurrency 1"
    result = evaluated(server, flags, "out")
    assert result["figures"]["all"]["outcomes"]["failed"] == 2
    assert result["figures"]["all"]["rated"]["answers"] == 18
    _, answers = read_answers(folder / "out")
    assert ["failure" in row.notes for row in answers[:3]] == [True, True, False]
    Path("out/result.json").unlink()  # as if it had been stopped while it graded
    asked = len(server.requests)
    with pytest.raises(UserError, match=r"a part of this very evaluation: give --eval\.resume to go on"):
        evaluated(server, flags, "out")
    result = evaluated(server, f"{flags} --eval.resume", "out")
    assert result["figures"]["all"]["outcomes"]["failed"] == 0
    assert len(server.requests) == asked + 1 + 1 + 2, "two trial questions and the two rows without an answer"


def test_samples_and_pass_at_k(folder: Path, serve: Any) -> None:
    seen: Counter[str] = Counter()

    def third(question: str) -> str:
        """Right once in three answers to a question."""
        seen[question] += 1
        right = "AB"[(int(question[0]) + int(question[4])) % 2] if "+" in question else "A"
        return right if seen[question] == 3 else "C"

    flags = "--eval.scorer first_letter --eval.n_samples_per_prompt 3 --eval.temperature 0.7 --eval.k 1 2 3"
    whole = evaluated(serve(third), flags, "out")["figures"]["all"]
    assert (whole["questions"], whole["answers"]) == (20, 60)
    assert {k: whole["pass_at"][k]["value"] for k in "123"} == pytest.approx({"1": 1 / 3, "2": 2 / 3, "3": 1.0})


def test_a_judge_counts_hallucinations_and_prefers(folder: Path, serve: Any) -> None:
    """The judge finds fault with what does not name its letter first, and prefers what does."""

    def judge(prompt: str) -> Any:
        _, data = split(prompt)
        if not data:
            return {"ready": True}
        _, *said = data
        good = [answer.strip('"').startswith("(") for answer in said]
        if len(said) == 1:
            return {"grounded": good[0]}
        return {"grounded": "tie" if good[0] == good[1] else "A" if good[0] else "B"}

    asked = serve(judge)
    graded = f"--judge.url {asked.url} --judge.served_model_name judge --judge.prompt rubric.yaml"
    first = evaluated(serve(letter), f"--eval.scorer judge {graded} --eval.hallucination", "a")
    assert first["rate"] == {"name": "hallucination rate", "outcome": "wrong", "better": "low"}
    assert first["figures"]["all"]["rates"]["wrong"]["value"] == pytest.approx(2 / 20)
    _, answers = read_answers(folder / "a")
    assert {row.score for row in answers} == {-1.0, 1.0} and "grounded" in answers[0].notes["judge"]

    worse = serve(lambda question: letter(question) if question.startswith("3") else "Who knows?")
    second = evaluated(worse, f"--eval.against a {graded} --model.name worse", "b")
    against = second["against"]["figures"]
    assert against["counts"] == {"won": 0, "tie": 7, "lost": 13}
    assert against["win_rate"]["value"] == pytest.approx(3.5 / 20)
    assert against["p_value"] == pytest.approx(2 * 0.5**13)
    assert second["figures"]["all"]["outcomes"]["ungraded"] == 20
    assert Counter(row.notes["against"] for row in read_answers(folder / "b")[1]) == {"tie": 7, "lost": 13}


MODEL = "--model.model_name_or_path tiny --data.dataset rows.jsonl --data.input_key question --eval.output out"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (f"{MODEL} --data.label_key reply --eval.scorer exact", "no column 'reply' (--data.label_key)"),
        (f"{MODEL} --eval.scorer none --eval.group_by kind,topic", "no row has the column 'topic' (--eval.group_by)"),
        (f"{MODEL} --eval.scorer none --eval.subject_column topic", "no row has the column 'topic'"),
        (f"{MODEL} --eval.scorer none --eval.subject_column subject --eval.taxonomy none.yaml", "does not exist"),
        (f"{MODEL} --data.label_key question --eval.scorer last_number", "no answer could be its reference"),
        (f"{MODEL} --data.label_key answer --eval.scorer pattern:(", "no regular expression"),
        (f"{MODEL} --eval.scorer missing.py", "missing.py"),
        (f"{MODEL} --eval.scorer none --data.max_len 999999", "has 4096 positions"),
        (f"{MODEL} --eval.scorer none --eval.max_new_tokens 5000", "has 4096 positions for prompt and answer"),
        (f"{MODEL.replace('tiny', 'nowhere')} --eval.scorer none", "nowhere"),
        (f"{MODEL.replace('path tiny', 'path empty')} --eval.scorer none", "empty holds no model"),
        (f"{MODEL.replace('rows', 'none')} --eval.scorer none", "none.jsonl has no rows"),
        (f"{MODEL} --eval.scorer none --eval.against nowhere --judge.model_name_or_path tiny "
         "--judge.prompt rubric.yaml", "nowhere"),
        ("--model.url http://127.0.0.1:9/v1 --model.served_model_name m --data.dataset rows.jsonl "
         "--data.input_key question --eval.output out --eval.scorer none", "the model's endpoint http://127.0.0.1:9/v1 "
         "cannot be reached"),
        ("--model.model_name_or_path tiny --eval.output out --eval.lm_eval arc_easy",
         "pip install openrlhf-ext[lm-eval]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence_and_nothing_is_written(folder: Path, flags: str, said: str) -> None:
    build_tiny_model(folder / "tiny", TinyShape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=64))
    (folder / "empty").mkdir()
    (folder / "none.jsonl").touch()
    with pytest.raises(UserError) as caught:
        main(flags.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()
