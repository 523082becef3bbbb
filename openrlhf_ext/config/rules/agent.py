"""The rules of agents."""

from __future__ import annotations

from openrlhf_ext.config.rules.violation import Rule

AGENT_RULES: tuple[Rule, ...] = ()
