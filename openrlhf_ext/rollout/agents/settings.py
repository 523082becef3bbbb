"""What an engine must know to play the episodes of an agent file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """`path` is the user's file. Seconds; the time of an episode is without what it waits for the policy.

    `max_turns` are the policy's turns in one episode, of all its players; `concurrent` episodes are under way at the
    same time in one engine.
    """

    path: str
    timeout_s: float = 300.0
    max_turns: int = 16
    concurrent: int = 256
    load_timeout_s: float = 120.0
