"""The rules of where rewards come from: how many there are, and what the rules among them need."""

from __future__ import annotations

import re
from collections.abc import Iterator

from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation

BUILTIN = ("rule:format", "rule:length", "verify:exact", "verify:math")


def named_sources(config: RLConfig) -> list[str]:
    """What --reward.remote_url names."""
    return [part.strip() for part in (config.reward.remote_url or "").split(",") if part.strip()]


def normalisations_fit(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    given = config.reward.normalize
    sources = len(named_sources(config)) + sum(
        (config.has_agent, config.has_reward_model, config.has_student, config.has_judge_reward)
    )
    if wrong := [how for how in given if how not in ("none", "batch", "group")]:
        yield Violation("--reward.normalize", " ".join(wrong), "give none, batch or group")
    elif sources and len(given) not in (0, 1, sources):
        remedy = f"{len(given)} values for {sources} sources; give one for each, or one for all"
        yield Violation("--reward.normalize", None, remedy)
    if "group" in given and config.rollout.n_samples_per_prompt == 1:
        yield Violation(
            "--reward.normalize",
            given,
            "a group of one has no spread; raise --rollout.n_samples_per_prompt, or give batch",
        )


def rules_have_their_settings(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    reward, named = config.reward, named_sources(config)
    for name in named:
        if name.startswith(("rule:", "verify:")) and name not in BUILTIN:
            yield Violation("--reward.remote_url", name, f"there is no such rule; choose from {', '.join(BUILTIN)}")
    if "rule:format" in named and (reward.format_pattern is None) == (not reward.format_tags):
        yield Violation(
            "--reward.remote_url", "rule:format", "give either --reward.format_pattern or --reward.format_tags"
        )
    if "rule:length" in named and reward.length_range is None:
        yield Violation("--reward.remote_url", "rule:length", "give --reward.length_range LOW HIGH, in tokens")
    if config.data.label_key is None and (wanting := [name for name in named if name.startswith("verify:")]):
        yield Violation("--data.label_key", None, f"{wanting[0]} compares answers to labels; name their column")
    for path, pattern in (
        ("--reward.format_pattern", reward.format_pattern), ("--reward.answer_pattern", reward.answer_pattern)
    ):  # fmt: skip
        try:
            re.compile(pattern or "")
        except re.error as error:
            yield Violation(path, pattern, f"it is no regular expression ({error})")


REWARD_RULES: tuple[Rule, ...] = (normalisations_fit, rules_have_their_settings)
