"""A user's agent file: imported, and what it holds found. Standard library only, unless the file wants OpenRLHF."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
import traceback
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from openrlhf_ext.rollout.agents.contract import Agent

TRACEBACK_LINES = 12
EXPECTED = (
    "one class that inherits from openrlhf_ext.rollout.agents.contract.Agent, or OpenRLHF's class AgentExecutor "
    "(openrlhf.utils.agent)"
)


class UnusableFile(Exception):
    """Why a file has no agent that can be played."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Our own contract's class, or an instance of OpenRLHF's executor."""

    agent: type[Agent] | None = None
    executor: Any = None

    @property
    def roles(self) -> tuple[str, ...]:
        return ("",) if self.agent is None else self.agent.roles


def load(path: str) -> Loaded:
    """Import the file and find its agent. Raises UnusableFile."""
    sys.path.append(os.path.dirname(os.path.abspath(path)))  # its neighbours are importable, and hide nothing
    provide_openrlhf(path)
    try:
        spec = importlib.util.spec_from_file_location("agent_module", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UnusableFile(f"syntax error in {error.filename}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit):
        raise UnusableFile(f"it cannot be imported:\n{tail()}") from None
    executor = getattr(module, "AgentExecutor", None)
    if inspect.isclass(executor):
        return Loaded(executor=_executor(executor))
    return Loaded(agent=_agent(module))


def _agent(module: ModuleType) -> type[Agent]:
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Agent) and value.__module__ == module.__name__
    ]
    playable = [value for value in found if not inspect.isabstract(value)]
    # A class that others of the file inherit from is theirs to build on.
    last = [value for value in playable if not any(value in other.__mro__[1:] for other in playable)]
    if len(last) != 1:
        names = ", ".join(value.__name__ for value in last or found) or "none"
        raise UnusableFile(f"it holds {len(last)} agents that can be played ({names}); expected {EXPECTED}")
    (agent,) = last
    roles = agent.roles
    named = isinstance(roles, (tuple, list)) and roles and all(isinstance(role, str) for role in roles)
    if not named or len(set(roles)) != len(roles):
        raise UnusableFile(f"the roles of {agent.__name__} are {roles!r}, not one name or several different ones")
    if not inspect.iscoroutinefunction(agent.play):
        raise UnusableFile(f"{agent.__name__}.play must be a coroutine: write `async def play`")
    return agent


def _executor(kind: type[Any]) -> Any:
    try:
        executor = kind()
    except (Exception, SystemExit):
        raise UnusableFile(f"AgentExecutor() fails:\n{tail()}") from None
    if not inspect.iscoroutinefunction(getattr(executor, "execute", None)):
        raise UnusableFile("its AgentExecutor has no coroutine `execute`: inherit from MultiTurnAgentExecutor")
    return executor


def provide_openrlhf(path: str) -> None:
    """Let `openrlhf.utils.agent` be imported: always our implementation, whose turns our engine plays token by token.

    What else a file takes from OpenRLHF is the real one, where that can be imported. It takes seconds to import, so
    it is tried only for a file that names it.
    """
    executors = importlib.import_module("openrlhf_ext.rollout.agents.executors")
    if importlib.util.find_spec("openrlhf") is not None:
        with open(path, encoding="utf-8", errors="replace") as file:
            if not re.search(r"\bopenrlhf\b", file.read()):
                return
        try:
            utilities = importlib.import_module("openrlhf.utils")
        except Exception:
            for name in [name for name in sys.modules if name == "openrlhf" or name.startswith("openrlhf.")]:
                del sys.modules[name]
        else:
            sys.modules["openrlhf.utils.agent"] = utilities.agent = executors  # type: ignore[attr-defined]
            return
    log = ModuleType("openrlhf.utils.logging_utils")
    log.init_logger = logging.getLogger  # type: ignore[attr-defined]
    parts = {"utils.agent": executors, "utils.logging_utils": log}
    packages = {name: ModuleType(name) for name in ("openrlhf", "openrlhf.utils")}
    for package in packages.values():
        package.__path__ = []
    packages["openrlhf"].utils = packages["openrlhf.utils"]  # type: ignore[attr-defined]
    sys.modules.update(packages)
    for name, module in parts.items():
        sys.modules[f"openrlhf.{name}"] = module
        setattr(packages["openrlhf.utils"], name.partition(".")[2], module)


def tail() -> str:
    """The end of the traceback that is being handled, without the import system's own lines."""
    lines = [line for line in traceback.format_exc().rstrip().splitlines() if "<frozen importlib" not in line]
    return "\n".join(lines[-TRACEBACK_LINES:])
