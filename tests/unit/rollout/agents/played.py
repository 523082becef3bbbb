"""Episodes of real agent files in their real processes, with a policy that babbles: same words for the same seed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openrlhf_ext.models.tiny import build_tokenizer
from openrlhf_ext.rollout.agents.episode import TurnRequest
from openrlhf_ext.rollout.agents.player import EpisodePlayer
from openrlhf_ext.rollout.agents.settings import AgentSettings
from openrlhf_ext.rollout.requests import GenerateRequest, SampledTurn
from openrlhf_ext.types import Prompt, Rollout, Sampling

TOKENIZER = build_tokenizer()
LIMIT = 400
HEAD = "import asyncio, os, signal, time\nfrom openrlhf_ext.rollout.agents.contract import Agent, EpisodeOver\n"


class Babbler:
    """A `TurnSampler`: one token of every turn in each step; a turn ends by itself after 3 to 8 tokens.

    A step takes as long as `step_s` says, so that turns meet.
    """

    version = 4
    tokenizer = TOKENIZER

    def __init__(self, step_s: float = 0.02) -> None:
        self.asked: list[TurnRequest] = []
        self.most_at_once = 0
        self._step_s = step_s
        self._going: dict[str, tuple[TurnRequest, list[int], random.Random]] = {}

    def add_turn(self, turn: TurnRequest) -> None:
        if turn.sampling.temperature < 0:
            raise ValueError("temperature must be non-negative")
        frozen = replace(turn, tokens=tuple(turn.tokens))
        self.asked.append(frozen)
        self._going[turn.name] = (frozen, [], random.Random(turn.seed))
        self.most_at_once = max(self.most_at_once, len(self._going))

    def step_turns(self) -> list[SampledTurn]:
        time.sleep(self._step_s)
        ended = []
        for name, (turn, tokens, draw) in list(self._going.items()):
            ends = len(tokens) >= 3 and draw.random() < 0.2
            tokens.append(TOKENIZER.eos_token_id if ends else TOKENIZER(draw.choice("abcdefgh")).input_ids[0])
            stop = next((each for each in turn.sampling.stop if TOKENIZER.decode(tokens).endswith(each)), None)
            if ends or stop or len(tokens) == turn.sampling.max_new_tokens:
                del self._going[name]
                finish: Any = "stop" if ends or stop else "length"
                logprobs = tuple(-float(token) for token in tokens)
                ended.append(SampledTurn(name, tuple(tokens), logprobs, finish, stop, self.version, 0))
        return ended

    def drop_turns(self, names: Sequence[str]) -> None:
        for name in names:
            del self._going[name]

    @property
    def idle(self) -> bool:
        return not self._going


@dataclass(frozen=True)
class Played:
    rollouts: list[Rollout]
    sampler: Babbler

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        return [tuple(rollout.token_ids.tolist()) for rollout in self.rollouts]


def asked(prompts: int = 3, samples: int = 2, **sampling: Any) -> list[GenerateRequest]:
    chosen = Sampling(**{"n": samples, "max_new_tokens": 20, "seed": 7, **sampling})
    texts = [f"Question {i}?" for i in range(prompts)]
    made = [
        Prompt(
            f"p{i}", tuple(TOKENIZER(text).input_ids), text, label=i, meta={"column": i * 10},
            messages=[{"role": "user", "content": text}],
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return [GenerateRequest(prompt, sample, chosen) for prompt in made for sample in range(samples)]


def write(folder: Path, body: str, name: str = "agent.py", head: str = HEAD) -> str:
    path = folder / name
    path.write_text(head + body)
    return str(path)


def play(
    path: str, requests: Sequence[GenerateRequest], *, step_s: float = 0.02, model: str = "", **settings: Any
) -> Played:
    return play_each(path, requests, step_s=step_s, model=model, **settings)[0]


def play_each(
    path: str, *rounds: Sequence[GenerateRequest], step_s: float = 0.02, model: str = "", **settings: Any
) -> list[Played]:
    """Several calls of one player, whose process they share."""
    sampler = Babbler(step_s)
    player = EpisodePlayer(AgentSettings(path, **settings), model, sampler, LIMIT)
    try:
        rollouts = [player.play(requests, None) for requests in rounds]
    finally:
        player.close()
    assert sampler.idle, "nothing is left in the engine"
    return [Played(each, sampler) for each in rollouts]
