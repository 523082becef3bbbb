"""The flags of agents: answers of several turns, in an environment."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.config.fields import flag


@dataclass(frozen=True, slots=True)
class AgentSection:
    timeout_s: float = flag(300.0, "seconds one episode may take beside what it waits for the policy; else it failed")
    max_turns: int = flag(16, "turns of the policy in the longest episode, of all players together")
    max_concurrent: int = flag(256, "episodes that one engine has under way at the same time")
