"""From the rl command's config to its agent: what engines play, and the environment's rewards."""

from __future__ import annotations

from pathlib import Path

from openrlhf_ext.config import Parsed, RLConfig
from openrlhf_ext.rewards.outcome import OutcomeSource
from openrlhf_ext.rollout.agents.process import AgentProfile, look_at
from openrlhf_ext.rollout.agents.settings import AgentSettings


def agent_settings(cfg: RLConfig) -> AgentSettings | None:
    """What every engine is told of the agent, where there is one."""
    if cfg.train.agent_func_path is None:
        return None
    return AgentSettings(
        path=str(Path(cfg.train.agent_func_path).expanduser().resolve()),
        timeout_s=cfg.agent.timeout_s,
        max_turns=cfg.agent.max_turns,
        concurrent=cfg.agent.max_concurrent,
    )


def environment(cfg: RLConfig) -> OutcomeSource | None:
    """The rewards that the agent's episodes give, where there is one."""
    path = cfg.train.agent_func_path
    return None if path is None else OutcomeSource(path)


def agent_profile(cfg: RLConfig) -> AgentProfile | None:
    """What the agent's file holds: it is imported once, before any model is. Raises ConfigError."""
    path, settings = cfg.train.agent_func_path, agent_settings(cfg)
    return None if path is None or settings is None else look_at(path, settings.load_timeout_s)


def caches_prefixes(parsed: Parsed) -> bool:
    """Turns of a talk begin with all that was said before them, so it is the default with an agent."""
    cfg: RLConfig = parsed.config
    asked = cfg.vllm.enable_prefix_caching
    return asked or (cfg.has_agent and "vllm.enable_prefix_caching" not in parsed.explicit)
