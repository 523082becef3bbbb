"""The flags of agents: answers of several turns, in an environment."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.config.fields import flag, planned

AGENTS = planned("agents")


@dataclass(frozen=True, slots=True)
class AgentSection:
    timeout_s: float = flag(300.0, "seconds one episode may take; then it counts as failed")
    max_turns: int = flag(16, "turns of the longest episode")
