"""From the rl command's config to its reward files and servers. Imports nothing heavy, so that they can start first."""

from __future__ import annotations

from typing import cast

from openrlhf_ext.config import RLConfig
from openrlhf_ext.rewards.sources import HttpSettings, Normalisation, RewardSettings, RuleSettings


def reward_settings(cfg: RLConfig) -> RewardSettings:
    reward = cfg.reward
    return RewardSettings(
        reward.on_error,
        reward.weights,
        reward.timeout_s,
        max_retries=reward.max_retries,
        normalize=tuple(cast(Normalisation, how) for how in reward.normalize),
        http=HttpSettings(
            reward.http_batch_size, reward.http_concurrency, reward.http_failures, reward.http_cooldown_s
        ),
        rules=RuleSettings(
            reward.format_pattern,
            reward.format_tags,
            reward.length_range,
            reward.answer_pattern,
            reward.verify_timeout_s,
        ),
    )


def reward_sources(cfg: RLConfig) -> list[str]:
    """The files, URLs and rules that rewards come from."""
    return [part.strip() for part in (cfg.reward.remote_url or "").split(",") if part.strip()]
