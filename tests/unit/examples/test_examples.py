"""The shipped reward files and data makers, loaded the way the reward loader does it: by path."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str((EXAMPLES / path).parent))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the quick start ---------------------------------------------------------------------------------------


def test_the_task_holds_out_numbers_that_are_trained_on_nowhere(tmp_path: Path) -> None:
    load("quick_start/task.py").write_task(tmp_path, demonstrations=500, prompts=300, held_out=50, seed=1)
    held, train, sft = (read(tmp_path / f"{name}.jsonl") for name in ("held_out", "train", "sft"))
    assert (len(held), len(train), len(sft)) == (50, 300, 500)
    questions = {row["question"] for row in held}
    assert len(questions) == 50
    assert not questions & {row["question"] for row in train + sft}
    for row in held + train:
        assert row["answer"] == "".join(sorted(row["question"].rsplit(" ", 1)[1]))


def test_the_demonstrations_are_careless_and_the_seed_decides(tmp_path: Path) -> None:
    task = load("quick_start/task.py")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        task.write_task(tmp_path / name, demonstrations=2000, prompts=10, held_out=10, seed=seed)
    a, b, c = ((tmp_path / name / "sft.jsonl").read_text() for name in "abc")
    assert a == b
    assert a != c
    right = [
        row["answer"] == "".join(sorted(row["question"].rsplit(" ", 1)[1]))
        for row in map(json.loads, a.split("\n")[:-1])
    ]
    assert 0.25 < sum(right) / len(right) < 0.4  # three of ten, and a few numbers that are sorted as they stand


def test_the_judge_learns_what_the_rule_says_of_answers_half_of_which_are_right(tmp_path: Path, monkeypatch) -> None:
    """In the very words that it will be asked in, and of other numbers than those it is held against."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "quick_start"))
    rubric = EXAMPLES / "quick_start/rubric.yaml"
    load("quick_start/grading.py").write_grading(tmp_path, rubric, rows=400, held_out=100, seed=1)
    rows, held = read(tmp_path / "judge_sft.jsonl"), read(tmp_path / "judge_held_out.jsonl")
    for row in rows:
        shown = re.search(r"<data \w+>\s*(.*?)\s*</data", row["question"].partition("judged:")[2])
        assert shown
        alike = all(len(pair) == 2 and pair[0] == pair[1] for pair in shown[1].split())
        assert json.loads(row["verdict"]) == {"correct": alike}
    for row in held:
        right = "".join(sorted(row["question"].rsplit(" ", 1)[1]))
        assert row["answer"] == right
        assert row["right"] == (row["response"] == right)
    for share in (sum("true" in row["verdict"] for row in rows) / 400, sum(row["right"] for row in held) / 100):
        assert 0.4 < share < 0.75  # a swap of equal digits, among other mistakes, leaves an answer right


def test_who_rewards_the_quick_start(
    quick_start: tuple[ModuleType, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = quick_start
    for flags, judged, by_rule in (
        ([], True, False),
        (["--reward", "rule"], False, True),
        (["--actor.model_name_or_path", "mine"], False, True),
        (["--actor.model_name_or_path", "mine", "--reward", "judge"], True, False),
        (["--judge.url", "http://host/v1", "--judge.prompt", "r.yaml"], False, False),
    ):
        calls.clear()
        assert start(run, monkeypatch, *flags) == 0
        rl = calls[-1]
        assert ("judge" in [command[0] for command in calls]) == judged, flags
        assert ("--reward.remote_url" in rl) == by_rule and ("--eval.remote_url" in rl) == (not by_rule), flags
        assert "--reward" not in rl


# --- a teacher ---------------------------------------------------------------------------------------------


def test_a_teacher_s_rows_hold_question_and_solution(tmp_path: Path) -> None:
    convert = load("rlt/convert.py")
    problems = tmp_path / "gsm8k.jsonl.gz"
    row = {"question": "2 + 2? ", "answer": "It is 2+2=<<2+2=4>>4.\n#### 4"}
    with gzip.open(problems, "wt") as file:
        file.write(json.dumps(row) + "\n")
    assert convert.main([str(problems), str(tmp_path / "out/train.jsonl")]) == 0
    (made,) = read(tmp_path / "out/train.jsonl")
    assert made["question"] == "2 + 2?"
    assert made["solution"] == "It is 2+2=4.\n#### 4"
    assert made["question"] in made["prompt"] and made["solution"] in made["prompt"]
    (tmp_path / "other.jsonl").write_text('{"text": "no problem"}\n')
    assert convert.main([str(tmp_path / "other.jsonl"), str(tmp_path / "x.jsonl")]) == 2
    assert convert.main([str(tmp_path / "nowhere.jsonl"), str(tmp_path / "x.jsonl")]) == 2


@given(st.text("0123456789", min_size=4, max_size=6))
def test_the_sorting_reward(number: str) -> None:
    prompt, answer = f"user {number} assistant ", "".join(sorted(number))
    wrong = "".join(sorted(number, reverse=True))
    given_answers = [answer, f"It is {answer}.<|im_end|>", wrong, "no number", f"{answer} or 0"]
    result = load("quick_start/reward.py").reward_func(
        [prompt + each for each in given_answers], [prompt] * 5, [answer] * 5
    )
    assert result["rewards"][:2] == [1.0, 1.0]
    assert result["rewards"][2] == float(wrong == answer)
    assert result["rewards"][3:] == [0.0, 0.0]
    assert result["extra_logs"]["same_digits"] == [1.0, 1.0, 1.0, 0.0, 0.0]


# --- GSM8K -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reward", "formatted"),
    [
        ("16 - 7 = 9, 9 * 2 = 18\n#### 18", 1.0, 1.0),
        ("#### $18", 1.0, 1.0),
        ("#### 18.0", 1.0, 1.0),
        ("#### 17\nno, wait\n#### 18", 1.0, 1.0),
        ("#### 18\nno, wait\n#### 17", 0.0, 1.0),
        ("#### -18", 0.0, 1.0),
        ("#### 181", 0.0, 1.0),
        ("the answer is 18", 0.0, 0.0),
        ("#### eighteen", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_number_after_the_marks(answer: str, reward: float, formatted: float) -> None:
    prompt = "How many? (for example #### 18) "
    result = load("gsm8k/reward.py").reward_func([prompt + answer], [prompt], ["16 - 7 = 9\n#### 18"])
    assert result["rewards"] == [reward]
    assert result["extra_logs"]["has_final_number"] == [formatted]


def test_thousands_separators_are_no_difference() -> None:
    module = load("gsm8k/reward.py")
    result = module.reward_func(["p#### 1,234,567", "p#### 1234567"], ["p", "p"], ["#### 1234567", "#### 1,234,567"])
    assert result["rewards"] == [1.0, 1.0]


# --- clinical notes ----------------------------------------------------------------------------------------

HEADER = ["Text ID", "Text", "Sentences", "Error Flag", "Error Type", "Error Sentence ID", "Error Sentence"]
HEADER += ["Corrected Sentence", "Corrected Text"]
NOTES = [
    ["n-0", 'A man, "unwell".\nGiven water. ', "", "1", "treatment", "1", "", "", 'A man, "unwell".\nGiven milk.'],
    ["n-1", "All is well.", "", "0", "NA", "-1", "NA", "NA", "NA"],
    ["n-2", "Fever.", "", "1", "diagnosis", "0", "", "", "Cough."],
]


def write_notes(path: Path, header: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *NOTES])
    return path


def test_every_note_with_an_error_gives_two_rows(tmp_path: Path) -> None:
    source, target = write_notes(tmp_path / "notes.csv", HEADER), tmp_path / "made" / "rows.jsonl"
    assert load("medec/convert.py").main([str(source), str(target)]) == 0
    rows = read(target)
    assert [(row["note_id"], row["label"]) for row in rows] == [
        ("n-0", "Harmful"),
        ("n-0", "Safe"),
        ("n-2", "Harmful"),
        ("n-2", "Safe"),
    ]
    assert rows[0]["prompt"].endswith('A man, "unwell".\nGiven water.')
    assert rows[1]["prompt"].endswith('A man, "unwell".\nGiven milk.')


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_notes(tmp_path / "notes.csv", [name.replace("Corrected Text", "Fixed Text") for name in HEADER])
    assert load("medec/convert.py").main([str(source), str(tmp_path / "rows.jsonl")]) == 2
    message = capsys.readouterr().err
    assert "Corrected Text" in message
    assert "Fixed Text" in message
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("answer", "reward", "has_verdict"),
    [
        ("I think so. <answer>Harmful</answer>", 1.0, 1.0),
        ("<answer> harmful. </answer>", 1.0, 1.0),
        ("<answer>Safe</answer>", -1.0, 1.0),
        ("<answer>Safe</answer> no: <answer>Harmful</answer>", 1.0, 1.0),
        ("Harmful", -1.0, 0.0),
        ("<answer>Safe or Harmful</answer>", -1.0, 0.0),
        ("", -1.0, 0.0),
    ],
)
def test_the_verdict_inside_the_answer(answer: str, reward: float, has_verdict: float) -> None:
    prompt = load("medec/convert.py").PROMPT.format(note="Fever.")
    result = load("medec/reward.py").reward_func([prompt + answer], [prompt], ["Harmful"])
    assert result["rewards"] == [reward]
    assert result["scores"] == [(reward + 1) / 2]
    assert result["extra_logs"]["has_verdict"] == [has_verdict]


# --- a reward of one's own ---------------------------------------------------------------------------------


def test_the_custom_reward_gives_a_tensor_per_query() -> None:
    result = load("custom_reward.py").reward_func(["p 42", "p 41"], ["p", "p"], ["42", "42"])
    assert result["rewards"].shape == (2,)
    assert result["rewards"][0] > result["rewards"][1]
    assert torch.equal(result["scores"], torch.tensor([1.0, 0.0]))


# --- running the quick start again -------------------------------------------------------------------------


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, list[list[str]]]:
    """The script in an empty folder, with commands that only leave their results behind."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "quick_start"))
    monkeypatch.chdir(tmp_path)
    run = load("quick_start/run.py")
    monkeypatch.setattr(run, "GRADED", 40)
    calls: list[list[str]] = []

    def call(title: str, command: list[str]) -> None:
        calls.append(command)
        if command[0] == "judge":
            folder = Path(command[command.index("--judge.prompt") + 1]).with_name("rubric_calibration")
            folder.mkdir()
            figures = {"accuracy": {"value": 0.99}, "kappa": {"value": 0.98}}
            (folder / "calibration.json").write_text(json.dumps({"agreement": figures}), encoding="utf-8")
        elif command[0] != "tiny-model":
            folder = Path(command[command.index("--ckpt.output_dir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            rows = [
                {"response": "12", "label": '"12"', "reward": 1.0},
                {"response": "21", "label": '"12"', "reward": 0.0},
            ]
            pq.write_table(pa.Table.from_pylist(rows), folder / "1.parquet")
            rollouts = str(folder)
            result = {"reward_before": 0.1, "reward_after": 0.2, "steps": 1, "checkpoint": "c", "rollouts": rollouts}
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")

    monkeypatch.setattr(run, "call", call)
    return run, calls


def start(run: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr("sys.argv", ["run.py", *flags])
    return run.main()


def test_every_run_has_a_folder_of_its_own(
    quick_start: tuple[ModuleType, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = quick_start
    assert [start(run, monkeypatch) for _ in range(3)] == [0, 0, 0]
    made = [command[command.index("--ckpt.output_dir") + 1] for command in calls if command[0] == "rl"]
    assert made == [f"outputs/quick_start{number}/rl" for number in ("", "_2", "_3")]
    assert [command[0] for command in calls[:6]] == ["tiny-model", "sft", "tiny-model", "sft", "judge", "rl"]


def test_a_folder_with_a_run_is_continued_or_refused(
    quick_start: tuple[ModuleType, list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, calls = quick_start
    assert start(run, monkeypatch, "--output", "mine") == 0
    calls.clear()
    assert start(run, monkeypatch, "--output", "mine") == 2
    assert "--ckpt.load_enable" in capsys.readouterr().err
    assert not calls
    assert start(run, monkeypatch, "--output", "mine", "--ckpt.load_enable") == 0
    assert [command[0] for command in calls] == ["rl"]
    assert calls[0][-1] == "--ckpt.load_enable"


def test_a_model_of_ones_own_needs_nowarm_up(
    quick_start: tuple[ModuleType, list[list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, calls = quick_start
    flags = ["--actor.model_name_or_path", "some/model", "--json", "deep/out.json", "--train.seed", "7"]
    assert start(run, monkeypatch, *flags) == 0
    (command,) = calls
    assert "tiny.yaml" not in " ".join(command)
    assert command[-2:] == ["--actor.model_name_or_path", "some/model"]
    assert command[command.index("--train.seed") + 1] == "7"
    assert json.loads((tmp_path / "deep/out.json").read_text())["reward_after"] == 0.2
