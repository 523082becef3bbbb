"""What the quick start's judge learns from, and what it is held against: answers with the rule's verdicts.

The questions are those that the judge will be asked in training, made by the same code from the same rubric.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from task import INSTRUCTION, distinct_numbers, write_rows

from openrlhf_ext.evaluation.agreement import Agreement, agreement
from openrlhf_ext.rewards.judge.prompt import Case, write_prompt
from openrlhf_ext.rewards.judge.rubric import Rubric
from openrlhf_ext.rewards.judge.rubric_file import load_rubric

# How often each kind of wrong answer is drawn: as a careless model errs, and as one that tries everything might.
MISTAKES = {"given back": 4, "swapped": 4, "replaced": 4, "left out": 2, "doubled": 2, "reversed": 1, "anything": 2}


def write_grading(folder: Path, rubric_file: Path, *, rows: int, held_out: int, seed: int) -> None:
    """Write judge_sft.jsonl, judge_held_out.jsonl (labelled answers to other numbers) and judge_corpus.txt."""
    rubric, draw = load_rubric(rubric_file), random.Random(f"grading {seed}")
    numbers = distinct_numbers(draw, rows + held_out)
    cases = [graded(number, draw) for number in numbers]
    questions = [{"question": _question(rubric, case), "verdict": _verdict(case)} for case in cases[held_out:]]
    write_rows(folder / "judge_sft.jsonl", questions)
    write_rows(folder / "judge_held_out.jsonl", cases[:held_out])
    (folder / "judge_corpus.txt").write_text("\n".join(_corpus(questions[0]["question"])) + "\n", encoding="utf-8")


def graded(number: str, draw: random.Random) -> dict[str, str | bool]:
    """An answer, half of them right, with the right answer and the rule's verdict."""
    right = "".join(sorted(number))
    answer = right if draw.random() < 0.5 else _mistaken(number, right, draw)
    return {"question": INSTRUCTION + number, "response": answer, "answer": right, "right": answer == right}


def agreement_on_rollouts(folder: Path) -> Agreement:
    """The judge's rewards against the rule's, over all answers that training saw."""
    labels, rewards = [], []
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file, columns=["response", "label", "reward"])
        for row in table.to_pylist():
            if row["reward"] is not None:
                labels.append(_last_number(row["response"]) == json.loads(row["label"]))
                rewards.append(row["reward"])
    return agreement(labels, [reward >= 0.5 for reward in rewards], resamples=200)


def _mistaken(number: str, right: str, draw: random.Random) -> str:
    kind = draw.choices(list(MISTAKES), list(MISTAKES.values()))[0]
    digits, place = list(right), draw.randrange(len(right))
    if kind == "given back":
        digits = list(number)
    elif kind == "swapped":
        other = min(place + 1, len(digits) - 1)
        digits[place], digits[other] = digits[other], digits[place]
    elif kind == "replaced":
        digits[place] = draw.choice("0123456789")
    elif kind == "left out":
        del digits[place]
    elif kind == "doubled":
        digits.insert(place, draw.choice("0123456789"))
    elif kind == "reversed":
        digits.reverse()
    else:
        digits = draw.choices("0123456789", k=draw.randint(0, 10))
    return "".join(digits)


def _question(rubric: Rubric, case: dict[str, str | bool]) -> str:
    return write_prompt(rubric, Case(str(case["question"]), str(case["response"]), case["answer"])).text


def _verdict(case: dict[str, str | bool]) -> str:
    return json.dumps({"correct": case["right"]})


def _corpus(question: str) -> Iterator[str]:
    """What the judge reads and writes, without the data, so often that each of its sentences becomes one token."""
    words = re.sub(r"(<data )[0-9a-f]+(>)[^<]*(</data )[0-9a-f]+(>)", r"\1\2\n\3\4", question)
    frame = [line for line in re.sub(r"\d", "", words).splitlines() if line]
    pairs = "".join(f" {number:02}" for number in range(100)) + "".join(f" {digit}" for digit in range(10))
    spoken = ["user", "assistant", '{"correct": true}', '{"correct": false}', pairs]
    for _ in range(50):
        yield from (*frame, *spoken)


def _last_number(answer: str) -> str:
    """As in reward.py."""
    return (re.findall(r"\d+", answer) or [""])[-1]
