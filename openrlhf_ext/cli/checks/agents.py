"""The agent's file: imported once in a process of its own, as a run does before it loads anything."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.cli.checks.finding import Finding, of_error, ok
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rollout.agents.process import look_at

AREA = "agent"
LOAD = 0.8
"""Part of the time of all checks: to be imported."""


def find_agent(subject: Subject) -> Iterator[Finding]:
    path = subject.config.train.agent_func_path
    if path is None:
        return
    try:
        profile = look_at(path, LOAD * subject.limit_s)
    except ConfigError as raised:
        yield of_error(AREA, raised)
        return
    if profile.contract == "openrlhf":
        yield ok(AREA, f"{path} holds OpenRLHF's AgentExecutor")
    elif len(profile.roles) > 1:
        yield ok(AREA, f"{path} is a game of {', '.join(profile.roles)}")
    else:
        yield ok(AREA, f"{path} holds an agent")
