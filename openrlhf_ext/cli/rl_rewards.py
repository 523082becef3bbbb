"""From the rl command's config to its reward files and servers. Imports nothing heavy, so that they can start first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from openrlhf_ext.config import RLConfig
from openrlhf_ext.config.sections import RewardSourceFields
from openrlhf_ext.rewards.sources import HttpSettings, Normalisation, RewardSettings, RuleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from openrlhf_ext.ports import RewardFn
    from openrlhf_ext.rewards.weighted import WeightedReward
    from openrlhf_ext.types import Prompt


def reward_settings(cfg: RLConfig) -> RewardSettings:
    reward = cfg.reward
    normalize = tuple(cast(Normalisation, how) for how in reward.normalize)
    return replace(source_settings(reward), on_error=reward.on_error, weights=reward.weights, normalize=normalize)


def source_settings(reward: RewardSourceFields) -> RewardSettings:
    """How one source is asked; what fails is counted."""
    return RewardSettings(
        "drop_group",
        timeout_s=reward.timeout_s,
        max_retries=reward.max_retries,
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
    return _named(cfg.reward.remote_url)


@contextmanager
def evaluation_reward(
    cfg: RLConfig, reward: WeightedReward, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> Iterator[RewardFn]:
    """What answers to the held-out prompts are scored by: sources of evaluation's own, tried like those of training,
    else those of training as they are. Raises RewardError as `load_reward` and its trial call do.
    """
    specs = _named(cfg.eval.remote_url)
    if not specs:
        yield reward.plain
        return
    from openrlhf_ext.rewards.load import load_reward

    settings = replace(reward_settings(cfg), weights=(), normalize=())
    with load_reward(specs, settings, tokenizer) as own:
        own.probe(prompts)
        yield own


def _named(specs: str | None) -> list[str]:
    return [part.strip() for part in (specs or "").split(",") if part.strip()]
