"""From the rl command's config to its reward files and servers. Imports nothing heavy, so that they can start first."""

from __future__ import annotations

from openrlhf_ext.config import RLConfig
from openrlhf_ext.rewards.load import RewardSettings


def reward_settings(cfg: RLConfig) -> RewardSettings:
    reward = cfg.reward
    return RewardSettings(reward.on_error, reward.weights, reward.timeout_s, max_retries=reward.max_retries)


def reward_sources(cfg: RLConfig) -> list[str]:
    """The files and URLs that rewards come from."""
    return [part.strip() for part in (cfg.reward.remote_url or "").split(",") if part.strip()]
