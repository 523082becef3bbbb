"""Episodes on a real vLLM engine: tokens, masks and log-probs of several turns, and what goes wrong among many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import agent_files
import pytest
import torch
from served_model import SHAPE, EngineProcess, Served, build_model, reference_logprobs

from openrlhf_ext.device import Device
from openrlhf_ext.models.tiny import build_tokenizer
from openrlhf_ext.rollout.agents.settings import AgentSettings
from openrlhf_ext.rollout.requests import GenerateRequest
from openrlhf_ext.rollout.vllm_engine import EngineSettings
from openrlhf_ext.types import Outcome, Prompt, Rollout, Sampling, ScoreFailure

CPU = Device("cpu", 0, frozenset({"bf16"}))
TOLERANCE = 1e-4
LIMIT = 500


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    for name in ("TWO_TURNS", "MANY_TURNS", "CHAT", "TROUBLE"):
        (folder / f"{name.lower()}.py").write_text(getattr(agent_files, name))
    return folder


@pytest.fixture(scope="module")
def served(files: Path) -> Iterator[Served]:
    model = build_model(files / "model", tied=True)
    settings = EngineSettings(
        model=str(files / "model"), transport="object_store", max_model_len=LIMIT, dtype="float32",
        kv_cache_gb=0.06, agent=AgentSettings(str(files / "two_turns.py")),
    )  # fmt: skip
    engine = EngineProcess(settings, CPU, agent_files.AgentEngine)
    yield Served(model, build_tokenizer(vocab=SHAPE.vocab), engine)
    engine.close()


def asked(served: Served, prompts: int = 6, samples: int = 4, **sampling: object) -> list[GenerateRequest]:
    texts = [f"Question {i}: what is {i} times {i * 13}? " for i in range(prompts)]
    chosen = Sampling(**{"max_new_tokens": 30, "seed": 5, **sampling})  # type: ignore[arg-type]
    made = [
        Prompt(f"p{i}", tuple(served.tokenizer(text).input_ids), text, label=i, meta={"stop": ["e", " "]})
        for i, text in enumerate(texts)
    ]
    return [GenerateRequest(prompt, k, chosen) for prompt in made for k in range(samples)]


def check_tokens(served: Served, rollouts: list[Rollout], answers: list) -> None:
    """Every action is what the engine sampled after exactly what stands before it; the model agrees on its log-prob."""
    after: dict[tuple[int, ...], list] = {}
    for before, answer in answers:
        after.setdefault(before, []).append(answer)
    turns = 0
    for rollout in rollouts:
        tokens, action_mask = tuple(rollout.token_ids.tolist()), rollout.action_mask.tolist()
        expected, position = [False] * len(tokens), 0
        while True in action_mask[position:]:
            start = action_mask.index(True, position)
            rest = tokens[start:]
            answer = next(one for one in after[tokens[:start]] if rest[: len(one.tokens)] == one.tokens)
            position = start + len(answer.tokens)
            assert rollout.logprobs[start:position].tolist() == list(answer.logprobs)
            expected[start:position] = [True] * len(answer.tokens)
            turns += 1
        assert action_mask == expected and expected[-1]
        assert {value for value, action in zip(rollout.logprobs, expected) if not action} == {0.0}
        reference = reference_logprobs(served.model, rollout.token_ids)
        action = torch.tensor(rollout.action_mask[1:])
        assert (torch.tensor(rollout.logprobs[1:]) - reference)[action].abs().max() < TOLERANCE
    assert turns == len(answers), "every turn of the policy is in a rollout"


def tokens_of(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in rollouts]


def outcome(rollout: Rollout) -> Outcome:
    assert isinstance(rollout.outcome, Outcome), rollout.outcome
    return rollout.outcome


def test_two_turns_token_by_token(served: Served, files: Path):
    requests = asked(served)
    rollouts, answers = served.engine.call("play_file", str(files / "two_turns.py"), requests, {})
    assert [rollout.key for rollout in rollouts] == [request.key for request in requests]
    check_tokens(served, rollouts, answers)
    told = tuple(served.tokenizer(" Check it: ", add_special_tokens=False).input_ids)
    for request, rollout in zip(requests, rollouts, strict=True):
        (first, reward), (last, length) = outcome(rollout).turns
        assert tuple(rollout.token_ids[: len(request.prompt.token_ids)].tolist()) == request.prompt.token_ids
        assert tuple(rollout.token_ids[first + 1 : first + 1 + len(told)].tolist()) == told
        assert last == len(rollout.token_ids) - 1
        info = outcome(rollout).info
        assert (reward, length) == (0.5, float(len(info["second"])))
        assert info["first"] in rollout.text and rollout.text.endswith(info["second"])
        assert (rollout.finish_reason == "length") == info["cut"]
    ends = {rollout.finish_reason for rollout in rollouts}
    assert "length" in ends


def test_an_engine_plays_the_agent_of_its_settings(served: Served):
    mine = served.engine.call("play", asked(served, prompts=2))
    assert all(outcome(rollout).turns for rollout in mine)
    assert mine == served.engine.call("play", asked(served, prompts=2)), "it can be asked again"
    single = served.engine.call("generate", asked(served, prompts=2))
    assert all(rollout.outcome is None for rollout in single), "and it still answers plain requests"


def test_tokens_do_not_depend_on_concurrency(served: Served, files: Path):
    requests, path = asked(served, 4, 2, max_new_tokens=12), str(files / "many_turns.py")
    together, answers = served.engine.call("play_file", path, requests, {})
    check_tokens(served, together, answers)
    assert {len(outcome(rollout).info["said"]) for rollout in together} == {1, 2, 3, 4}
    tokens = tokens_of(together)
    for concurrent in (1, 3):
        again, _ = served.engine.call("play_file", path, requests, {"concurrent": concurrent})
        assert tokens_of(again) == tokens
    backwards, _ = served.engine.call("play_file", path, requests[::-1], {"concurrent": 5})
    assert tokens_of(backwards) == tokens[::-1]
    other, _ = served.engine.call("play_file", path, asked(served, 4, 2, max_new_tokens=12, seed=6), {})
    assert tokens_of(other) != tokens


def test_stop_strings_end_a_turn_and_stay_in_it(served: Served, files: Path):
    _, answers = served.engine.call("play_file", str(files / "many_turns.py"), asked(served), {})
    stopped = [answer for _, answer in answers if answer.stop is not None]
    assert stopped
    for answer in stopped:
        text = served.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        assert text.endswith(answer.stop) and "e" not in text[:-1] and " " not in text[:-1]


def test_turns_are_computed_from_where_the_last_one_ended(served: Served, files: Path):
    rollouts, answers = served.engine.call("play_file", str(files / "chat.py"), asked(served, 3, 2), {})
    check_tokens(served, rollouts, answers)
    assert len(answers) == 18
    block = 128  # of the cache on a CPU
    cached = [(len(before), answer.cached) for before, answer in answers if len(before) > 2 * block]
    assert cached and all(known >= block for _, known in cached)


def test_episodes_that_fail_are_typed_and_the_others_are_whole(served: Served, files: Path):
    requests = asked(served, prompts=8, samples=2)
    start = time.monotonic()
    rollouts, _ = served.engine.call(
        "play_file", str(files / "trouble.py"), requests, {"timeout_s": 2.0, "concurrent": 4}
    )
    assert time.monotonic() - start < 60
    whole, _ = served.engine.call("play_file", str(files / "trouble.py"), asked(served, 1, 2), {})
    assert tokens_of(whole) == tokens_of(rollouts[:2])
    failed = {
        (rollout.prompt_id, rollout.sample): rollout.outcome
        for rollout in rollouts
        if isinstance(rollout.outcome, ScoreFailure)
    }
    reasons = {f"{key[0]}.{key[1]}": failure.reason for key, failure in failed.items()}
    expected = {"p1.0": "timeout", "p2.0": "exception", "p4.0": "timeout", "p6.0": "crashed"}
    assert expected.items() <= reasons.items()
    assert len(failed) <= 4 + 2 * 3, "those under way beside a process that was lost"
    assert "the tool broke" in failed["p2", 0].detail
    for request, rollout in zip(requests, rollouts, strict=True):
        assert tuple(rollout.token_ids[: len(request.prompt.token_ids)].tolist()) == request.prompt.token_ids
