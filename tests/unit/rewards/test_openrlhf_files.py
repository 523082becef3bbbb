"""Reward files in the manner of OpenRLHF's documentation and examples, which run unchanged."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import pytest

from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Outcome, Prompt, Rollout, Score


def group(name: str, label: object, *texts: str) -> tuple[Prompt, list[Rollout]]:
    prompt = Prompt(name, (1,), f"{name}? ", label)
    rollouts = [Rollout(name, i, (1, 2), (False, True), (0.0, -0.5), t, "stop", (0, 0)) for i, t in enumerate(texts)]
    return prompt, rollouts


@pytest.fixture
def reward(tmp_path):
    """Open a reward file given as source text; its process is ended with the test."""
    opened = []

    def open_reward(source: str):
        (tmp_path / "reward.py").write_text(textwrap.dedent(source))
        opened.append(load_reward([str(tmp_path / "reward.py")], RewardSettings(max_retries=0)))
        return opened[-1]

    yield open_reward
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("rewards", "logs", "values", "logged"),
    [
        ("torch.tensor(hits)", '{"accuracy": torch.tensor(hits).mean()}', [1, 0], [0.5, 0.5]),
        (
            "torch.tensor(hits, dtype=torch.bfloat16)",
            '{"accuracy": torch.tensor([h > 0 for h in hits])}',
            [1, 0],
            [1, 0],
        ),
        ("torch.tensor(hits, requires_grad=True)", '{"accuracy": 7}', [1, 0], [7, 7]),
        ("torch.tensor(hits).long()", '{"accuracy": torch.tensor([3])[0]}', [1, 0], [3, 3]),
        ("[torch.tensor(h) for h in hits]", '{"accuracy": [torch.tensor(h) for h in hits]}', [1, 0], [1, 0]),
    ],
)
def test_tensors_as_openrlhfs_examples_return_them(reward, rewards, logs, values, logged):
    """Their signature with its types, the answer cut from the query, prints, and what is one number for all."""
    fn = reward(f"""
        import re
        from typing import List, Optional
        import torch

        def last_answer(response: str) -> Optional[str]:
            found = re.findall(r"Answer:\\s*(.+?)(?:\\n|$)", response, re.IGNORECASE)
            return found[-1].strip() if found else None

        def reward_func(queries: List[str], prompts: List[str], labels: List[str], **kwargs) -> dict:
            hits = []
            for query, prompt, label in zip(queries, prompts, labels):
                response = query[len(prompt):] if isinstance(prompt, str) and prompt in query else query
                hits.append(1.0 if last_answer(response) == label else 0.0)
                print("asked for", label)
            return {{"rewards": {rewards}, "scores": {rewards}, "extra_logs": {logs}}}
        """)
    [scores] = fn.score([group("a", "42", "so Answer: 41\nAnswer: 42\n", "Answer: 7")])
    assert [score.value for score in scores] == values
    assert [score.filter_value for score in scores] == values
    assert [score.parts["reward/accuracy"] for score in scores] == logged


def test_random_rewards_as_in_openrlhfs_first_example(reward):
    fn = reward("""
        import torch
        def reward_func(queries, prompts, labels, **kwargs):
            print(queries)
            reward = torch.randint(0, 2, (len(queries),)).float()
            return {"rewards": reward, "scores": reward, "extra_logs": {"dummy_scores": reward}}
        """)
    fn.probe()
    [scores] = fn.score([group("a", None, *"abcdefgh")])
    assert {score.value for score in scores} <= {0.0, 1.0}
    assert all(score.parts == {"reward": score.value, "reward/dummy_scores": score.value} for score in scores)


def test_answers_of_an_environment_bring_role_and_episode(reward):
    fn = reward("""
        def reward_func(queries, prompts, labels, role, episode, **kwargs):
            return [float(len(r)) + e.get("turns", 0) for r, e in zip(role, episode)]
        """)
    prompt, [first, second] = group("a", None, "x", "y")
    played = replace(first, role="attacker", outcome=Outcome(Score(0.0), info={"turns": 3}))
    assert [s.value for s in fn.score([(prompt, [played, second])])[0]] == [11.0, 0.0]
