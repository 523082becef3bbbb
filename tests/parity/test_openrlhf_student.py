"""RLT's reward in an unmodified OpenRLHF 0.11.2: its executor calls our plugin file, and our server by its client."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openrlhf_server import served

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import choose_device
from openrlhf_ext.models.frozen import LocalLogprobs
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards import openrlhf_plugin
from openrlhf_ext.rewards.line import Line
from openrlhf_ext.rewards.student import StudentSettings, StudentSource
from openrlhf_ext.rewards.student_server import student_cases, student_form

SHAPE = TinyShape(hidden=32, layers=1, heads=1, kv_heads=1, intermediate=64, vocab=300, max_positions=512)
NUMBERS = range(1, 13)


def prompt_of(number: int) -> str:
    return f"Explain why {number} + {number} is {2 * number}. "


def answer_of(number: int) -> str:
    inside = "twice " * (number % 4) + f"{number}"
    return inside if number % 5 == 0 else f"<explanation>{inside}</explanation>"


def columns_of(number: int) -> dict[str, str]:
    return {"question": f"{number} + {number} = ?", "solution": f"{2 * number}"}


class Engine:
    """What OpenRLHF's executor asks for tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    async def generate(self, tokens: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        text = answer_of(int(self._tokenizer.decode(tokens).split("why ")[1].split(" ")[0]))
        ids = [*self._tokenizer.encode(text), self._tokenizer.eos_token_id]
        output = SimpleNamespace(token_ids=ids, text=text, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A student and a teacher, and the rewards of the answers by plain transformers."""
    folder = tmp_path_factory.mktemp("rlt")
    for seed, name in enumerate(("teacher", "student")):
        build_tiny_model(folder / name, SHAPE, seed=seed)
    tokenizer = load_tokenizer(folder / "student")
    source = StudentSource(
        "student", tokenizer, tokenizer, StudentSettings(teacher="policy"), max_tokens=SHAPE.max_positions
    )
    source.connect(SimpleNamespace(student=local(folder / "student"), policy=local(folder / "teacher")))
    return SimpleNamespace(tokenizer=tokenizer, source=source, folder=folder)


def local(folder: Path) -> LocalLogprobs:
    return LocalLogprobs(ModelSpec(str(folder), dtype="fp32"), choose_device("cpu"), SplitSettings(rows=4))


def slow(world: SimpleNamespace, number: int) -> float:
    """The reward once more, from the texts."""
    from transformers import AutoModelForCausalLM

    ids = lambda text: world.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    answer, asked = answer_of(number), columns_of(number)
    matched = answer.startswith("<explanation>")
    inside = answer.removeprefix("<explanation>").removesuffix("</explanation>")
    opening = "<explanation>" if matched else ""

    def logp(name: str, context: str, tokens: list[int]) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(world.folder / name, dtype=torch.float32)
        row = [*ids(context), *tokens]
        with torch.no_grad():
            every = (model(torch.tensor([row])).logits[0, :-1].double() / 0.7).log_softmax(-1)
        return torch.stack([every[at - 1, row[at]] for at in range(len(row) - len(tokens), len(row))])

    before = f"{asked['question']}\n<think>\n"
    gap = logp("teacher", prompt_of(number) + opening, ids(inside)) - logp("student", before, ids(inside))
    solution = logp("student", f"{before}{inside}\n</think>\n\n", ids(asked["solution"]))
    reward = solution.mean() + 0.01 * solution.min() - 3 * gap.mean() - 0.03 * gap.max()
    return float(reward) - (not matched)


@pytest.mark.parametrize("way", ["plugin", "url"])
def test_their_executor_gets_the_rewards_of_the_student(
    way: str, openrlhf: SimpleNamespace, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    rounds: list[int] = []
    score = student_cases(world.source)

    def counted(cases: Any) -> Any:
        rounds.append(len(cases))
        return score(cases)

    agent = importlib.import_module("openrlhf.utils.agent")
    engine, params = Engine(world.tokenizer), SimpleNamespace(max_tokens=64, logprobs=None)
    with served(lambda: Line(counted, lambda text: None), student_form(world.source, world.tokenizer)) as url:
        monkeypatch.setenv(openrlhf_plugin.URL, url)
        executor = agent.SingleTurnAgentExecutor(openrlhf_plugin.__file__ if way == "plugin" else url)

        async def episodes() -> list[dict[str, Any]]:
            labels = [json.dumps(columns_of(number)) for number in NUMBERS]
            return await asyncio.gather(
                *(
                    executor.execute(prompt_of(number), label, params, 400, world.tokenizer, engine)
                    for number, label in zip(NUMBERS, labels, strict=True)
                )
            )

        responses = asyncio.run(episodes())
    for number, response in zip(NUMBERS, responses, strict=True):
        assert float(torch.as_tensor(response["reward"])) == pytest.approx(slow(world, number), abs=1e-4)
    assert sum(rounds) == len(NUMBERS)
    assert way == "url" or max(rounds) > 1, "one sample a call, and batches again"
