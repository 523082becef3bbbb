"""OpenRLHF's contract of agents in its process, where openrlhf itself cannot be imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from played import TOKENIZER, Played, asked, play, play_each, write

from openrlhf_ext.types import Outcome, ScoreFailure

DOCUMENTED = Path(__file__).parents[4] / "examples/agents/openrlhf_agent.py"

# One file, an executor for each label: what a custom `execute` may do.
CUSTOM = '''
import asyncio, threading
from copy import deepcopy
from openrlhf.utils.agent import AgentExecutorBase, AgentInstanceBase, MultiTurnAgentExecutor, SingleTurnAgentExecutor
from openrlhf.utils.logging_utils import init_logger

logger = init_logger(__name__)


class Environment(AgentInstanceBase):
    def __init__(self):
        self.turns = 0

    async def reset(self, states, **kwargs):
        return {"observation": "Q: " + states["observation"] + " A:"}

    async def step(self, state_dict, **kwargs):
        self.turns += 1
        assert state_dict["observation_text"].startswith("Q: ")
        return {"rewards": 0.5, "environment_feedback": " go on." if self.turns < 3 else "", "done": self.turns == 3,
                "extra_logs": {"turns": self.turns, "length": len(state_dict["action_text"])}}


def in_a_thread(coroutine_of):
    """As a server does that runs beside the episodes, in an event loop of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(coroutine_of())))
    thread.start()
    return thread, found


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Environment)

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine):
        tokens = hf_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if label == 0:
            return await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine)
        if label == 1:
            single = SingleTurnAgentExecutor()
            return await single.execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine)
        if label == 2:
            sampling_params.temperature = -1.0
        if label == 11:
            sampling_params.min_tokens = 5
        if label == 3:
            thread, found = in_a_thread(lambda: llm_engine.generate(tokens, deepcopy(sampling_params)))
            while thread.is_alive():
                await asyncio.sleep(0.01)
            answer = found[0].outputs[0]
        else:
            sampling_params.logprobs = 1
            answer = (await llm_engine.generate(tokens, sampling_params)).outputs[0]
            assert [p[t].logprob for t, p in zip(answer.token_ids, answer.logprobs)] == [
                -float(t) for t in answer.token_ids
            ]
        whole = tokens + list(answer.token_ids)
        ranges = [(len(tokens), len(whole))]
        result = {"observation_tokens": whole, "action_ranges": ranges, "reward": 1.5, "scores": 0.75}
        if label == 5:
            whole[-1] += 1
        if label == 6:
            ranges[0] = (len(tokens) - 1, len(whole))
        if label == 7:
            del whole[-1], ranges[:]
        if label == 8:
            return None
        if label == 9:
            del whole[-1]
            ranges[0] = (len(tokens), len(whole))
        if label == 10:
            result["reward"] = float("inf")
        return result
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that its process needs of the policy is the tokenizer."""
    folder = tmp_path_factory.mktemp("policy")
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def custom(model: str, tmp_path_factory: pytest.TempPathFactory) -> Played:
    path = write(tmp_path_factory.mktemp("custom"), CUSTOM, head="")
    return play(path, asked(prompts=12, samples=2), model=model, concurrent=5, timeout_s=60.0)


def test_its_documented_example_runs_unchanged(model: str):
    requests = asked(prompts=6)
    played, again = play_each(str(DOCUMENTED), requests, requests[::-1], model=model)
    incorrect = "\n\nHuman: [INCORRECT]\nPlease analyze the issues and try again.\n</s>\n\nAssistant: "
    between = tuple(TOKENIZER(incorrect, add_special_tokens=False).input_ids)
    seen = {turn.tokens for turn in played.sampler.asked}
    lengths = set()
    for request, rollout in zip(requests, played.rollouts, strict=True):
        assert isinstance(rollout.outcome, Outcome), rollout.outcome
        ends = [position for position, _ in rollout.outcome.turns]
        lengths.add(len(ends))
        tokens, expected = tuple(rollout.token_ids.tolist()), [False] * len(request.prompt.token_ids)
        for position in ends:
            assert tokens[: len(expected)] in seen, "the policy was asked with these very tokens"
            expected += [True] * (position + 1 - len(expected))
            if position != ends[-1]:
                assert tokens[position + 1 : position + 1 + len(between)] == between
                expected += [False] * len(between)
        assert list(rollout.action_mask) == expected
        *before, last = [reward for _, reward in rollout.outcome.turns]
        assert set(before) <= {0.0} and last in (0.0, 1.0)
        score = rollout.outcome.score
        assert score.value == last == score.filter_value == score.parts["dummy_scores"]
    assert lengths <= {2, 3, 4} and len(lengths) > 1, "it draws how many turns there are"
    assert again.tokens == played.tokens[::-1]
    assert [r.outcome for r in again.rollouts] == [r.outcome for r in played.rollouts[::-1]], "its draws are seeded"


def outcomes(custom: Played, label: int) -> list:
    return [rollout.outcome for rollout in custom.rollouts[2 * label : 2 * label + 2]]


def test_turns_of_its_multi_turn_executor(custom: Played):
    for rollout in custom.rollouts[:2]:
        assert isinstance(rollout.outcome, Outcome)
        assert [reward for _, reward in rollout.outcome.turns] == [0.5] * 3
        assert rollout.outcome.score.value == rollout.outcome.score.filter_value == 1.5
        assert rollout.outcome.score.parts["turns"] == 3
        text = TOKENIZER.decode(rollout.token_ids, skip_special_tokens=False)
        assert text.startswith("Q: Question 0? A:") and text.count(" go on.") == 2


def test_an_executor_that_gives_no_reward_says_so(custom: Played):
    for outcome in outcomes(custom, 1):
        assert isinstance(outcome, Outcome)
        assert outcome.score.value == 0.0 and outcome.turns == ()
        assert "environment" in outcome.score.notes


@pytest.mark.parametrize("label", [3, 4])
def test_a_custom_executor_in_its_episode_or_beside_it(custom: Played, label: int):
    for request, rollout in zip(asked(12)[2 * label :], custom.rollouts[2 * label : 2 * label + 2], strict=False):
        assert isinstance(rollout.outcome, Outcome), rollout.outcome
        start = len(request.prompt.token_ids)
        assert rollout.outcome.turns == ((len(rollout.token_ids) - 1, 1.5),)
        assert rollout.outcome.score.filter_value == 0.75
        assert rollout.action_mask.argmax() == start
        assert rollout.logprobs[start:].tolist() == [-float(token) for token in rollout.token_ids[start:]]


def test_an_action_that_was_cut_is_its_beginning(custom: Played):
    for rollout in custom.rollouts[18:20]:
        assert isinstance(rollout.outcome, Outcome)
        assert rollout.finish_reason == "length" and rollout.token_ids[-1] != TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    ("label", "reason", "words"),
    [
        (2, "exception", "temperature must be non-negative"),
        (5, "wrong_type", "not what the policy said there"),
        (6, "wrong_type", "not what the policy said there"),
        (7, "wrong_type", "said nothing"),
        (8, "wrong_type", "execute returned NoneType"),
        (10, "not_finite", "inf"),
        (11, "exception", "sampling_params.min_tokens=5 is not taken here"),
    ],
)
def test_what_an_executor_gets_wrong_is_its_failure(custom: Played, label: int, reason: str, words: str):
    for outcome in outcomes(custom, label):
        assert isinstance(outcome, ScoreFailure)
        assert outcome.reason == reason and words in outcome.detail
