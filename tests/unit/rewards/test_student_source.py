"""The student as a source of rewards: equal to a slow computation, on made-up rows and on rows of GSM8K."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from slow_student import slow_reward, token_logprobs
from transformers import AutoModelForCausalLM

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import choose_device
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.models.frozen import LocalLogprobs
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.rewards.server import Refused
from openrlhf_ext.rewards.student import StudentSettings, StudentSource
from openrlhf_ext.rewards.student_server import student_cases, student_form
from openrlhf_ext.types import FinishReason, Prompt, Rollout

SHAPE = TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=330, max_positions=2048)
GSM8K = os.environ.get("GSM8K_ROWS")
"""A file of {"question", "answer"} rows."""
TEMPERATURE = 0.7
ROWS = [
    ("What is 2 + 2?", "2 and 2 are 4.\n#### 4"),
    ("Wie groß ist 3 × 5?", "3 · 5 = 15 ✓\n#### 15"),
    ("One egg?", "1"),
]
ANSWERS: list[tuple[str, FinishReason]] = [
    ("<explanation>Count: two, then two more.</explanation>", "stop"),
    ("Well.\n<explanation>größer als 14, 漢字 🙂</explanation> and more", "stop"),
    ("<explanation></explanation>", "stop"),
    ("no tag at all, only words", "stop"),
    ("<explanation>cut off in the mid", "length"),
]


def local(folder: Path) -> LocalLogprobs:
    """In micro-batches of two rows and chunks of seven positions."""
    return LocalLogprobs(
        ModelSpec(str(folder), dtype="fp32", logprob_chunk=7), choose_device("cpu"), SplitSettings(rows=2)
    )


class World:
    """Two tiny models of one vocabulary, as we run them and as transformers does."""

    def __init__(self, folder: Path) -> None:
        corpus = [f"{question} {solution} <explanation>" for question, solution in ROWS] * 4
        for seed, name in enumerate(("teacher", "student")):
            build_tiny_model(folder / name, SHAPE, corpus=corpus, seed=seed)
        self.path = folder / "student"
        self.tokenizer = load_tokenizer(self.path)
        self.plain = {
            name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
            for name in ("teacher", "student")
        }
        student = local(folder / "student")
        self.roles = SimpleNamespace(policy=local(folder / "teacher"), student=student, reference=student)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def source(self, **settings: Any) -> StudentSource:
        chosen = StudentSettings(**{"templated": True, **settings})
        source = StudentSource(str(self.path), self.tokenizer, self.tokenizer, chosen, max_tokens=2048)
        source.connect(self.roles)
        return source

    def prompt(self, question: str, solution: str, index: int = 0) -> Prompt:
        text = f"Question: {question}\nSolution: {solution}\nExplain.\n"
        return Prompt(f"p{index}", tuple(self.ids(text)), text, meta={"question": question, "solution": solution})

    def rollout(self, prompt: Prompt, answer: str, finish: FinishReason, sample: int = 0) -> Rollout:
        """As the teacher would have sampled it: its log-probs by plain transformers, all tokens of one pass."""
        tokens = self.ids(answer) + ([self.tokenizer.eos_token_id] if finish == "stop" else [])
        row = [*prompt.token_ids, *tokens]
        with torch.no_grad():
            logp = (self.plain["teacher"](torch.tensor([row])).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        sampled = [float(logp[at - 1, row[at]]) for at in range(len(prompt.token_ids), len(row))]
        return Rollout(
            prompt.id, sample, tuple(row), (False,) * len(prompt.token_ids) + (True,) * len(tokens),
            (0.0,) * len(prompt.token_ids) + tuple(sampled), answer, finish, (3, 3),
        )  # fmt: skip

    def slow(self, prompt: Prompt, answer: str) -> float:
        """From the texts alone, for answers whose tags do not share tokens with what is between them."""
        inside, matched = answer, False
        if "<explanation>" in answer:
            inside = answer.split("<explanation>")[1].split("</explanation>")[0]
            matched = "</explanation>" in answer
        before = "<explanation>".join(answer.split("<explanation>")[:-1]) + "<explanation>" * ("<exp" in answer)
        tokens = self.ids(answer)[len(self.ids(before)) :][: len(self.ids(inside))]
        assert tokens == self.ids(inside), "these answers have tags of their own tokens"
        question, solution = prompt.meta["question"], prompt.meta["solution"]
        asked = self.ids(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n")
        told = [*asked, *tokens, *self.ids("\n</think>\n\n")]
        student, teacher = self.plain["student"], self.plain["teacher"]
        return slow_reward(
            token_logprobs(student, told, self.ids(solution), TEMPERATURE),
            token_logprobs(teacher, [*prompt.token_ids, *self.ids(before)], tokens, TEMPERATURE),
            token_logprobs(student, asked, tokens, TEMPERATURE),
            matched,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("student"))


def groups(world: World, rows: list[tuple[str, str]]) -> list[tuple[Prompt, list[Rollout]]]:
    prompts = [world.prompt(*row, index) for index, row in enumerate(rows)]
    return [(p, [world.rollout(p, *answer, sample) for sample, answer in enumerate(ANSWERS)]) for p in prompts]


def scored(source: StudentSource, batch: list[tuple[Prompt, list[Rollout]]]) -> list[list[Any]]:
    with load_reward([], RewardSettings(), None, [source]) as reward:
        return reward.score(batch)


@pytest.mark.parametrize("teacher", ["sampler", "policy"])
def test_the_reward_equals_the_slow_one(world: World, teacher: str):
    batch = groups(world, ROWS)
    scores = scored(world.source(teacher=teacher), batch)
    for (prompt, _), of_prompt in zip(batch, scores, strict=True):
        for (answer, _), score in zip(ANSWERS, of_prompt, strict=True):
            assert score.value == pytest.approx(world.slow(prompt, answer), abs=1e-5)
            assert score.parts["student/match"] == (0.0 if "</explanation>" in answer else -1.0)
    assert len({score.value for of_prompt in scores for score in of_prompt}) == len(ROWS) * len(ANSWERS)


@pytest.mark.skipif(GSM8K is None, reason="GSM8K_ROWS names no file of GSM8K rows")
def test_the_reward_equals_the_slow_one_on_gsm8k(world: World):
    lines = Path(str(GSM8K)).read_text().splitlines()[:4]
    rows = [(row["question"], row["answer"]) for row in map(json.loads, lines)]
    batch = groups(world, rows)
    worst = 0.0
    for (prompt, _), of_prompt in zip(batch, scored(world.source(), batch), strict=True):
        for (answer, _), score in zip(ANSWERS[:2], of_prompt, strict=False):
            worst = max(worst, abs(score.value - world.slow(prompt, answer)))
    print(f"largest difference on {len(rows)} rows: {worst:.2e}")
    assert worst < 1e-5


def test_a_tag_within_a_token_leaves_the_explanation_whole(world: World):
    """The sampled tokens run over the tags' edges: the student reads all letters, and none of the tags."""
    prompt = world.prompt(*ROWS[0])
    rollout = world.rollout(prompt, ANSWERS[0][0], "stop")
    source = world.source()
    reader = source._bytes
    reader._bytes[len(world.tokenizer) + 5] = b">Say"  # a vocabulary in which it is one token
    at = len(prompt.token_ids)
    tokens = [
        *prompt.token_ids,
        *world.ids("<explanation"),
        len(world.tokenizer) + 5,
        *world.ids(" four.</explanation>"),
    ]
    actions = (False,) * at + (True,) * (len(tokens) - at)
    rollout = Rollout("p0", 0, tuple(tokens), actions, (0.0,) * len(tokens), "", "length", (0, 0))
    reading = source.reading(prompt, rollout)
    text = world.tokenizer.decode(list(reading.token_ids))
    assert "<think>\nSay four.\n</think>\n\n2 and 2" in text
    assert world.tokenizer.decode([reading.token_ids[at] for at in reading.explanation]) == " four."
    assert [rollout.token_ids[at] for at in reading.teacher_at] == world.ids(" four.")


def test_every_sample_s_terms_and_logprobs_are_on_disk(world: World, tmp_path: Path):
    batch = groups(world, ROWS[:2])
    source = world.source(debug_dir=tmp_path / "debug")
    scores = [score for of_prompt in scored(source, batch) for score in of_prompt]
    again = world.source(debug_dir=tmp_path / "debug")
    scored(again, batch[:1])
    first, second = sorted((tmp_path / "debug").iterdir())
    rows = pq.read_table(first).to_pylist()
    assert pq.read_table(second).num_rows == len(ANSWERS)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [
        (prompt.id, rollout.sample) for prompt, rollouts in batch for rollout in rollouts
    ]
    for row, score in zip(rows, scores, strict=True):
        assert row["reward"] == score.value
        assert {f"student/{name}": value for name, value in row["parts"].items()}.items() <= score.parts.items()
        gaps = [a - b for a, b in zip(row["teacher_logp"], row["student_logp"], strict=True)]
        expected = slow_reward(
            row["solution_logp"], row["teacher_logp"], row["student_logp"], row["parts"]["match"] == 0
        )
        assert row["reward"] == pytest.approx(expected, abs=1e-9)
        assert row["parts"]["explanation_tokens"] == len(gaps)
        start = row["explanation_start"]
        words = world.tokenizer.decode(row["student_tokens"][start : start + len(gaps)])
        assert words == row["explanation"]
        assert world.tokenizer.decode(row["student_tokens"][row["solution_start"] :]) in {text for _, text in ROWS}
        assert row["version"] == 3
    assert "größer als 14, 漢字 🙂" in {row["explanation"] for row in rows}


def test_the_reference_may_be_the_student(world: World):
    roles = SimpleNamespace(policy=world.roles.policy, reference=world.roles.student, student=None)
    source = world.source(from_reference=True)
    source.connect(roles)
    batch = groups(world, ROWS[:1])
    assert scored(source, batch)[0][0].value == pytest.approx(world.slow(batch[0][0], ANSWERS[0][0]), abs=1e-5)


def test_a_prompt_that_has_opened_the_tag(world: World):
    row = world.prompt(*ROWS[0])
    opened = Prompt("o", tuple(world.ids(row.text + "<explanation>\n")), row.text + "<explanation>\n", meta=row.meta)
    found = world.source().reading(opened, world.rollout(opened, "Two twos.</explanation>", "stop")).found
    assert found.matched


def test_its_own_template_and_words_around(world: World):
    source = world.source(
        prompt="Q ({{ hint }}): {{ question }}\n", think_tags=("[", "]"), solution_prefix=" A: ", solution_key="label",
        label_key="label",
    )  # fmt: skip
    prompt = Prompt("x", (1,), "…", label="four", meta={"question": "2+2?", "hint": "sum"})
    reading = source.reading(prompt, world.rollout(prompt, "<explanation>ab</explanation>", "stop"))
    assert world.tokenizer.decode(list(reading.token_ids)) == "Q (sum): 2+2?\n[ab] A: four"


def test_what_cannot_be_read_is_said_before_anything_loads(world: World, tmp_path: Path):
    prompt = world.prompt(*ROWS[0])
    with pytest.raises(DataError, match="no text in its column 'solution'"):
        world.source().check([Prompt("x", (1,), "x", meta={"question": "?"})])
    with pytest.raises(DataError, match=r"the student .* reads 2048"):
        world.source(max_answer_tokens=2040).check([prompt])
    world.source(max_answer_tokens=2040, max_total_tokens=200).check([prompt])
    with pytest.raises(DataError, match="'hint' is undefined"):
        world.source(prompt="{{ hint }}").check([prompt])
    with pytest.raises(ConfigError, match="no Jinja template"):
        world.source(prompt="{{ question")
    other = load_tokenizer(build_tiny_model(tmp_path / "other", TinyShape(vocab=300), corpus=["another corpus"] * 9))
    with pytest.raises(DataError, match="has another vocabulary"):
        StudentSource("s", other, world.tokenizer, StudentSettings(), max_tokens=10)


def test_its_costs_are_told_once(world: World):
    source = world.source()
    scored(source, groups(world, ROWS[:1]))
    report = source.take_report()
    assert report["reward/student/tokens"].value > 100
    assert report["reward/student/seconds"].value > 0
    assert source.take_report()["reward/student/tokens"].value == 0


def test_behind_http_the_rewards_are_those_of_a_forward_of_the_teacher(world: World):
    source = world.source(teacher="policy")
    batch = groups(world, ROWS)
    expected = [score.value for of_prompt in scored(source, batch) for score in of_prompt]
    samples = [(prompt, rollout) for prompt, rollouts in batch for rollout in rollouts]
    end = {"stop": world.tokenizer.eos_token, "length": ""}
    body = {
        "query": [prompt.text + rollout.text + end[rollout.finish_reason] for prompt, rollout in samples],
        "prompts": [prompt.text for prompt, _ in samples],
        "labels": [json.dumps(prompt.meta) if at % 2 else prompt.meta for at, (prompt, _) in enumerate(samples)],
    }
    form = student_form(source, world.tokenizer)
    answered = form.write(student_cases(source)(form.read(json.dumps(body).encode())))
    assert answered["rewards"] == answered["scores"] == pytest.approx(expected, abs=1e-5)
    assert answered["extra_logs"]["match"] == [0, 0, 0, -1, -1] * len(ROWS)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"query": ["ab"], "prompts": ["a"], "labels": []}, "not one prompt and one label for each query"),
        ({"query": ["ab"], "prompts": ["a"]}, "not one prompt and one label for each query"),
        ({"query": ["ab"], "prompts": ["b"], "labels": [{}]}, "does not begin with"),
        ({"query": ["ab"], "prompts": ["a"], "labels": ["four"]}, r"labels\[0\] is no object"),
        ({"query": ["ab"], "prompts": ["a"], "labels": [{"question": "?"}]}, "no text in its column 'solution'"),
        (
            {"query": ["a" * 3000], "prompts": ["a"], "labels": [{"question": "?", "solution": "!"}]},
            "the student .* reads",
        ),
    ],
)
def test_requests_that_it_cannot_read(world: World, body: dict[str, Any], said: str):
    with pytest.raises(Refused, match=said) as raised:
        student_form(world.source(teacher="policy"), world.tokenizer).read(json.dumps(body).encode())
    assert raised.value.status == 400
