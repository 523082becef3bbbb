"""`judge calibrate` against a rule behind a real endpoint, and `judge serve` with an engine of its own."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from jobs import MODULES, Job, job

from openrlhf_ext.cli.judge import main
from openrlhf_ext.cli.judge_calibration import warning_of
from openrlhf_ext.config.judge import JudgeSection
from openrlhf_ext.errors import UserError
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards.judge.rubric_file import load_rubric
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Prompt, Rollout

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit/rewards/judge"))
from openai_server import OpenAIServer, split

MODULES.setdefault("judge", "openrlhf_ext.cli.judge")

RUBRIC = """\
instructions: |
  Task: {{ prompt }}
  Response: {{ response }}
criteria:
  - {name: correct, description: it is right, scale: boolean, weight: 3}
  - {name: tidy, description: it is tidy, scale: {integer: [1, 5]}}
"""
SUMS = [(a, b) for a in range(6) for b in range(5)]
LABELLED = "--data.prompt_key question --data.response_key answer --data.label_key flag --data.right_values 0"


def is_right(prompt: str) -> bool:
    """By the data between the fences: `a + b`, and what is said of it."""
    _, (task, response) = split(prompt)
    a, b = (int(number) for number in re.findall(r"\d+", task))
    return response == str(a + b)


def grader(prompt: str) -> dict[str, Any]:
    return {"correct": is_right(prompt), "tidy": 5}


def by_order(prompt: str) -> dict[str, Any]:
    """Strict where `correct` comes first, lenient where it comes last."""
    lenient = prompt.index('"tidy"') < prompt.index('"correct"')
    return {"correct": is_right(prompt) or lenient, "tidy": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    rows, pairs = [], []
    for index, (a, b) in enumerate(SUMS):
        wrong = index % 3 == 0  # flags as MEDEC's: 1 is an error
        rows.append({"question": f"{a} + {b}", "answer": str(a + b + wrong), "flag": int(wrong)})
        pairs.append({"question": f"{a} + {b}", "truth": str(a + b), "hallucination": str(a + b + 1)})
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def calibrated(rule: Callable[[str], Any], flags: str, dataset: str = "rows") -> dict[str, Any]:
    """What the command finds, in the current folder, of a judge that follows a rule."""
    server = OpenAIServer(lambda prompt: rule(prompt) if split(prompt)[1] else {"ready": True}).start()
    judge = f"--judge.url {server.url} --judge.served_model_name judge --judge.prompt rubric.yaml"
    try:
        assert main(f"calibrate {judge} --data.dataset {dataset}.jsonl {flags}".split()) == 0
    finally:
        server.close()
    return json.loads(Path("rubric_calibration/calibration.json").read_text())


def calibrated_judge(found: dict[str, Any]) -> JudgeSection:
    """The flags by which `rl` trains with the judge that was calibrated."""
    name, url = found["judge"].split(" at ")
    return JudgeSection(url=url, served_model_name=name, prompt="rubric.yaml")


def test_a_right_judge_agrees_in_every_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrated(grader, LABELLED + " --json --calibrate.repeats 2")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    whole = found["agreement"]
    assert (whole["true_positives"], whole["true_negatives"]) == (20, 10)
    assert whole["accuracy"]["value"] == whole["kappa"]["value"] == whole["auc"] == 1.0
    assert whole["accuracy"]["low"] < 0.9 < whole["accuracy"]["high"]
    assert found["order"]["changed"]["value"] == 0.0
    assert (found["consistency"]["rows"], found["consistency"]["unanimous"]["value"]) == (30, 1.0)
    assert not found["no_better_than_chance"] and not found["no_verdict"]
    assert (folder / "rubric_calibration/disagreements.jsonl").read_text() == ""
    assert warning_of(calibrated_judge(found), load_rubric("rubric.yaml")) is None


def test_a_judge_that_says_yes_to_all_is_warned_of_here_and_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = calibrated(lambda prompt: {"correct": True, "tidy": 3}, LABELLED + " --calibrate.repeats 1")
    said = capsys.readouterr().out
    assert found["no_better_than_chance"] and "no better than chance" in said
    assert found["agreement"]["kappa"]["value"] == 0.0
    rows = [json.loads(line) for line in (folder / "rubric_calibration/disagreements.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == [str(a + b + 1) for a, b in SUMS[::3]]
    assert {row["label"] for row in rows} == {"wrong"}
    assert "the first 10 disagreements" in said
    flags, rubric = calibrated_judge(found), load_rubric("rubric.yaml")
    assert "no better than chance: on 30" in (warning_of(flags, rubric) or "")
    for other in ({"url": "http://another/v1"}, {"served_model_name": "another"}, {"mode": "pairwise"}):
        assert warning_of(replace(flags, **other), rubric) is None


def test_a_judge_that_the_order_of_criteria_turns_is_seen(folder: Path) -> None:
    found = calibrated(by_order, LABELLED + " --calibrate.repeats 1")
    assert found["agreement"]["accuracy"]["value"] == 1.0
    assert found["order"]["changed"]["value"] == pytest.approx(1 / 3)  # the wrong third becomes right
    assert found["order"]["first"]["value"] == 1.0


def test_pairs_in_both_orders(folder: Path) -> None:
    """A judge that prefers what it is shown first, but for sums of 0: there it prefers what is right."""

    def rule(prompt: str) -> dict[str, str]:
        _, (task, first, second) = split(prompt)
        best = "A" if not task.startswith("0") or int(first) < int(second) else "B"
        return {"correct": best, "tidy": "tie"}

    flags = "--data.prompt_key question --data.right_key truth --data.wrong_key hallucination --judge.mode pairwise"
    found = calibrated(rule, flags, "pairs")
    assert found["pairs_right"]["value"] == pytest.approx(5 / 30)
    assert found["order"]["changed"]["value"] == pytest.approx(25 / 30)
    assert found["order"]["first"]["value"] == pytest.approx((2 * 25 + 5) / 60)
    assert found["agreement"]["accuracy"]["value"] == pytest.approx((25 + 2 * 5) / 60)


def test_a_judge_that_calls_everything_a_tie_is_no_use(folder: Path) -> None:
    flags = "--data.prompt_key question --data.right_key truth --data.wrong_key hallucination --judge.mode pairwise"
    found = calibrated(lambda prompt: {"correct": "tie", "tidy": "tie"}, flags, "pairs")
    assert found["no_better_than_chance"] and found["ties"] == 60
    judge = replace(calibrated_judge(found), mode="pairwise")
    assert "never said which of two is better" in (warning_of(judge, load_rubric("rubric.yaml")) or "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--data.dataset pairs.jsonl --data.right_key truth --data.wrong_key hallucination --judge.mode pairwise "
            "--calibrate.repeats 2",
            "it is for verdicts on one; leave it out with pairwise",
        ),
        ("--data.dataset rows.jsonl --data.response_key reply --data.label_key flag", "no column 'reply'"),
        ("--data.dataset rows.jsonl --data.response_key answer --data.label_key answer", "--data.right_values"),
        ("--data.dataset rows.jsonl --data.response_key answer --data.right_key answer", "takes the place of"),
        ("--data.dataset rows.jsonl --data.response_key answer --data.label_key flag", "cannot be reached"),
    ],
    ids=["pairwise", "column", "label", "both forms", "endpoint"],
)
def test_what_is_wrong_is_a_sentence(folder: Path, flags: str, said: str) -> None:
    judge = "--judge.url http://127.0.0.1:9/v1 --judge.served_model_name judge --judge.prompt rubric.yaml"
    with pytest.raises(UserError) as caught:
        main(f"calibrate {judge} {flags}".split())
    assert said in str(caught.value)


# --- serve ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, str]]:
    folder = tmp_path_factory.mktemp("judge_serve")
    (folder / "rubric.yaml").write_text(RUBRIC)
    build_tiny_model(folder / "judge", TinyShape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=64))
    flags = "serve --judge.model_name_or_path judge --judge.prompt rubric.yaml --judge.max_new_tokens 48 --port 0"
    with job("judge", [*flags.split(), "--device", "cpu", "--judge.kv_cache_gb", "0.05"], folder) as process:
        process.until(lambda: "Ctrl-C stops it" in process.output, "address")
        found = re.search(r"at (http://127\.0\.0\.1:\d+/get_reward);", process.output)
        assert found, process.output
        yield process, found[1]


def test_the_judge_behind_http_is_a_source_of_rewards(served: tuple[Job, str]) -> None:
    _, url = served
    prompts = [Prompt(str(i), (1,), f"{a} + {b}", str(a + b)) for i, (a, b) in enumerate(SUMS[:6])]
    groups = [
        (p, [Rollout(p.id, i, (1, 2), (False, True), (0.0, -1.0), text, "stop", (0, 0)) for i, text in enumerate("17")])
        for p in prompts
    ]
    with load_reward([url], RewardSettings()) as reward:
        reward.probe(prompts)
        first, second = reward.score(groups), reward.score(groups)
    assert first == second, "the same question gets the same verdict"
    for group in first:
        assert isinstance(group, list)
        for score in group:
            parts = {name.rpartition("/")[2]: value for name, value in score.parts.items()}
            assert parts["correct"] in (0, 1) and parts["tidy"] in range(1, 6)
            assert score.value == pytest.approx((3 * parts["correct"] + (parts["tidy"] - 1) / 4) / 4)


def test_a_request_of_another_form_is_refused_in_a_sentence(served: tuple[Job, str]) -> None:
    _, url = served
    for body, said in (
        ({"query": ["a b"]}, "no 'prompts'"),
        ({"query": ["a b"], "prompts": ["c"]}, "does not begin with prompts[0]"),
        ({"query": ["a b"], "prompts": ["a"], "labels": []}, "'labels' has 0 values for 1 queries"),
    ):
        answer = httpx.post(url, json=body, timeout=60)
        assert answer.status_code == 400 and said in answer.json()["error"], answer.text
    verdict = httpx.post(url, json={"query": ["a b"], "prompts": ["a"]}, timeout=60).json()
    assert json.loads(verdict["notes"][0])["criteria"].keys() == {"correct", "tidy"}
    assert verdict["rewards"] == verdict["scores"]
    assert httpx.get(url.replace("get_reward", "health")).json()["judge"]["asked"] >= 1


def test_it_ends_when_it_is_told(served: tuple[Job, str]) -> None:
    process, _ = served
    process.driver.send_signal(signal.SIGINT)
    said = process.wait(0)
    assert re.search(r"stopped after \d+ texts of \d+ requests: \d+ without a verdict", said)
