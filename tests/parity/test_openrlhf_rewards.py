"""Our rewards in an unmodified OpenRLHF 0.11.2: its own executor calls our plugin file, and our server by its client.

The judge is a real one behind the real server; its model is a rule, so that its verdicts are known.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openrlhf_server import served
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openrlhf_ext.errors import ConfigError, RewardError
from openrlhf_ext.rewards import openrlhf_plugin
from openrlhf_ext.rewards.answer import AnswerError
from openrlhf_ext.rewards.http import HttpSource
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.rubric_file import load_rubric
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply
from openrlhf_ext.rewards.judge_server import judge_cases, judge_form
from openrlhf_ext.rewards.line import Line
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.rewards.process import RewardBatch

PLUGIN = openrlhf_plugin.__file__
RUBRIC = """
instructions: |
  Is {{ label }} the answer to this question?
  {{ prompt }}
  The response:
  {{ response }}
criteria:
  - name: right
    description: The response holds the answer.
    scale: boolean
  - name: length
    description: The digits of the answer.
    scale: {integer: [0, 9]}
"""


class ByRule:
    """A LanguageModel that finds a response right which holds twice the number of its question, and measures it."""

    name = "by-rule"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def reply(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        self.calls.append(len(questions))
        return [self._one(question.messages[-1]["content"]) for question in questions]

    def _one(self, text: str) -> Reply | NoReply:
        if "refuse" in text:
            return NoReply("refused", "not this one")
        number = int(text.split("twice ")[1].split("?")[0])
        verdict = {"right": f"it is {2 * number}." in text, "length": len(str(2 * number))}
        return Reply(json.dumps(verdict), "stop", 10, 5)


class Engine:
    """What OpenRLHF's executor asks for tokens: it answers every question rightly but those divisible by three."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    async def generate(self, tokens: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        prompt = self._tokenizer.decode(tokens)
        number = int(prompt.split("twice ")[1].split("?")[0])
        await asyncio.sleep(0.001 * (number % 7))
        text = "refuse" if number == 13 else f"it is {2 * number + (number % 3 == 0)}."
        output = SimpleNamespace(token_ids=self._tokenizer.encode(text), text=text, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def right(number: int) -> float:
    return float(number % 3 != 0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="module")
def theirs(openrlhf: SimpleNamespace) -> SimpleNamespace:
    """Their executor, and what makes its responses experiences."""
    agent = importlib.import_module("openrlhf.utils.agent")
    generator = importlib.import_module("openrlhf.trainer.ppo_utils.samples_generator").SamplesGenerator
    return SimpleNamespace(
        executor=agent.SingleTurnAgentExecutor, experience=generator._process_response_into_experience
    )


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[tuple[ByRule, str]]:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    rubric, model = load_rubric(str(tmp_path / "rubric.yaml")), ByRule()
    asked = Judge(rubric)
    asked.connect(model)
    with served(lambda: Line(judge_cases(asked, Counter()), lambda text: None), judge_form(rubric)) as url:
        yield model, url


def rollouts(executor: Any, tokenizer: PreTrainedTokenizerFast, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The responses of episodes that run at the same time, as in an engine of OpenRLHF's."""
    engine, params = Engine(tokenizer), SimpleNamespace(max_tokens=24, logprobs=None)

    async def all_of_them() -> list[dict[str, Any]]:
        prompts = [f"What is twice {number}? " for number in numbers]
        return await asyncio.gather(
            *(
                executor.execute(p, str(2 * n), params, 256, tokenizer, engine)
                for p, n in zip(prompts, numbers, strict=True)
            )
        )

    return asyncio.run(all_of_them())


def checked(theirs: SimpleNamespace, responses: Sequence[dict[str, Any]], numbers: Sequence[int], shape: tuple) -> None:
    """Each response has the rewards of its own number, also as an experience of theirs."""
    for number, response in zip(numbers, responses, strict=True):
        experience = theirs.experience(None, response, max_len=256)
        for value in (experience.rewards, experience.scores, experience.info["right"], experience.info["reward"]):
            assert value.item() == pytest.approx(
                expected(number) if value is not experience.info["right"] else right(number)
            )
        assert experience.info["length"].item() == len(str(2 * number))
        assert experience.rewards.shape == shape


def expected(number: int) -> float:
    """The mean of the two criteria, each from 0 to 1."""
    return (right(number) + len(str(2 * number)) / 9) / 2


def test_their_executor_with_our_plugin(theirs, judge, tokenizer, monkeypatch):
    model, url = judge
    monkeypatch.setenv(openrlhf_plugin.URL, url)
    numbers = [n for n in range(1, 49) if n != 13]
    responses = rollouts(theirs.executor(PLUGIN), tokenizer, numbers)
    checked(theirs, responses, numbers, (1,))
    assert max(model.calls) > 1, "one sample a call, and batches again"
    assert len(model.calls) < len(numbers)


def test_only_the_caller_of_a_bad_sample_gets_its_error(theirs, judge, tokenizer, monkeypatch):
    monkeypatch.setenv(openrlhf_plugin.URL, judge[1])
    gatherer = openrlhf_plugin.gatherer_from_environment()
    numbers = list(range(10, 18))

    async def calls() -> list[Any]:
        async def one(number: int) -> Any:
            prompt = f"What is twice {number}? "
            answer = "refuse" if number == 13 else f"it is {2 * number}."
            return await asyncio.to_thread(gatherer.ask, [prompt + answer], [prompt], [str(2 * number)])

        return await asyncio.gather(*map(one, numbers), return_exceptions=True)

    for number, answer in zip(numbers, asyncio.run(calls()), strict=True):
        if number == 13:
            assert isinstance(answer, RewardError) and "not this one" in str(answer)
        else:
            assert answer.logs["right"] == [1.0]
    for _ in range(6):  # more than a server that is down would be asked
        with pytest.raises(RewardError, match="not this one"):
            gatherer.ask(["What is twice 13? refuse"], ["What is twice 13? "], ["26"])
    assert gatherer.ask(["What is twice 5? it is 10."], ["What is twice 5? "], ["10"]).logs["right"] == [1.0]


def test_a_prompt_that_they_cut_is_known_by_its_end(judge):
    prompt = f"{'Once upon a time. ' * 20}What is twice 4? "
    cut = prompt[100:]
    answer = HttpSource("judge", judge[1]).ask(RewardBatch([f"{cut}it is 8."], [prompt], ["8"], {}), 10)
    assert answer.logs["right"] == [1.0]
    [note] = answer.notes
    assert json.loads(note)["criteria"] == {"right": True, "length": 1}
    with pytest.raises(AnswerError, match="does not begin with"):
        HttpSource("judge", judge[1]).ask(RewardBatch(["4? it is 8."], [prompt], ["8"], {}), 10)


def test_a_dead_server_is_an_error_for_everyone_and_no_hang(monkeypatch):
    monkeypatch.setenv(openrlhf_plugin.URL, "http://127.0.0.1:1/get_reward")
    monkeypatch.setattr(openrlhf_plugin, "MAX_RETRIES", 0)
    gatherer = openrlhf_plugin.gatherer_from_environment()
    with pytest.raises(RewardError, match=r"127\.0\.0\.1:1/get_reward gave no reward"):
        gatherer.ask(["q"], ["q"], [None])
    with pytest.raises(RewardError, match="labels cannot be sent as JSON"):
        gatherer.ask(["q"], ["q"], [{1}])


def test_a_missing_address_is_said_when_they_load_the_file(theirs, monkeypatch):
    monkeypatch.delenv(openrlhf_plugin.URL, raising=False)
    with pytest.raises(ConfigError, match=r"OPENRLHF_EXT_REWARD_URL is not set: give it the address"):
        theirs.executor(PLUGIN)
    monkeypatch.setenv(openrlhf_plugin.URL, "http://127.0.0.1:1/get_reward")
    monkeypatch.setenv("OPENRLHF_EXT_REWARD_TIMEOUT_S", "soon")
    with pytest.raises(ConfigError, match="OPENRLHF_EXT_REWARD_TIMEOUT_S=soon: give a number above 0"):
        theirs.executor(PLUGIN)


def test_their_client_with_our_server(theirs, judge, tokenizer):
    numbers = [n for n in range(1, 25) if n != 13]
    responses = rollouts(theirs.executor(judge[1]), tokenizer, numbers)
    checked(theirs, responses, numbers, (1, 1))  # a list of one as they keep it, from their own server too


def test_their_plugin_form_is_ours_too(judge, monkeypatch):
    """The plugin file as a source of our own: what it returns is what a reward file returns."""
    monkeypatch.setenv(openrlhf_plugin.URL, judge[1])
    from openrlhf_ext.types import Prompt, Rollout

    prompt = Prompt("p", (1,), "What is twice 4? ", "8")
    texts = ["it is 8.", "it is 9."]
    siblings = [Rollout("p", i, (1, 2), (False, True), (0.0, 0.0), t, "stop", (0, 0)) for i, t in enumerate(texts)]
    with load_reward([PLUGIN], RewardSettings()) as reward:
        [scores] = reward.score([(prompt, siblings)])
    assert [score.value for score in scores] == pytest.approx([(1 + 1 / 9) / 2, 1 / 18])
    assert torch.tensor([score.parts["openrlhf_plugin/right"] for score in scores]).tolist() == [1.0, 0.0]
