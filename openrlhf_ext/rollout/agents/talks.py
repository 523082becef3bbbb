"""Our own contract in the agent's process: the talks of an episode, and what becomes of it. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf_ext.rollout.agents.calls import Calls
from openrlhf_ext.rollout.agents.contract import Agent, EpisodeOver, Said, Task


class WrongType(TypeError):
    """A reward, or what an episode returned, is not of the kind that the contract says."""


class LiveTalk:
    """A `Talk`: what is told waits here until the policy is to speak; the engine keeps the tokens."""

    def __init__(self, calls: Calls, episode: int, role: str) -> None:
        self._calls = calls
        self._of = {"kind": "sample", "episode": episode, "role": role}
        self._parts: list[dict[str, Any]] = []
        self._turns = 0
        self._speaking = False
        self.rewards: dict[int, float] = {}

    def tell(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"tell takes a text, not {type(text).__name__}")
        self._parts.append({"text": text})

    def tell_messages(self, messages: Sequence[Mapping[str, str]]) -> None:
        told = [dict(message) for message in messages]
        if not told or not all({"role", "content"} <= message.keys() for message in told):
            raise ValueError("tell_messages takes messages with 'role' and 'content'")
        self._parts.append({"messages": told})

    async def sample(self, *, max_new_tokens: int | None = None, stop: Sequence[str] = ()) -> Said:
        if self._speaking:
            raise RuntimeError("the policy speaks already in this talk: await its turn before the next")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: a turn has at least one token")
        parts, self._parts = self._parts, []
        stops = [stop] if isinstance(stop, str) else list(stop)
        self._speaking = True
        try:
            reply = await self._calls.ask({**self._of, "parts": parts, "max_new_tokens": max_new_tokens, "stop": stops})
        finally:
            self._speaking = False
        require_turn(reply)
        self._turns += 1
        return Said(reply["text"], reply["cut"])

    def reward(self, value: float) -> None:
        if not self._turns:
            raise ValueError("reward is for the policy's latest turn, and it has not spoken yet")
        number = as_number(value, "a reward")
        self.rewards[self._turns - 1] = self.rewards.get(self._turns - 1, 0.0) + number


def require_turn(reply: Mapping[str, Any]) -> None:
    """Raise what the engine says instead of a turn."""
    if "over" in reply:
        raise EpisodeOver(reply["over"])
    if "error" in reply:
        raise ValueError(reply["error"])


def as_number(value: Any, what: str) -> float:
    """A number, or a tensor or array of one. Raises WrongType."""
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, (int, float)):
        raise WrongType(f"{what} is {repr(value)[:60]}, not a number")
    return float(plain)


async def play(agent: type[Agent], task: Task, calls: Calls, episode: int) -> dict[str, Any]:
    """Play one episode; what the engine is told of it."""
    talks = {role: LiveTalk(calls, episode, role) for role in agent.roles}
    over, info = False, None
    try:
        info = await agent().play(task, talks)
    except EpisodeOver:
        over = True
    if info is not None and not isinstance(info, Mapping):
        raise WrongType(f"play returned {type(info).__name__}, not a mapping of JSON values or None")
    rewards = {role: sorted(talk.rewards.items()) for role, talk in talks.items()}
    given = [value for each in rewards.values() for _, value in each]
    if not all(map(math.isfinite, given)):
        return {"kind": "failed", "reason": "not_finite", "detail": f"a reward is not finite: {given}"}
    return {"kind": "done", "rewards": rewards, "info": dict(info or {}), "over": over}
