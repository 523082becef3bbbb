"""The rules of `serve-rm`, which has neither data sets nor checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.rules.common import refused_flags, values_in_range, varlen_needs_packing
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required
from openrlhf_ext.config.serve_rm import ServeRMConfig


def a_model_is_named(config: ServeRMConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from required(config, {"reward.model_name_or_path": "the reward model, a Hugging Face folder or hub name"})


def a_request_may_wait(config: ServeRMConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.limits.waiting_mb < config.limits.request_mb:
        yield Violation(
            "--limits.waiting_mb", config.limits.waiting_mb, "one request of --limits.request_mb would be more than it"
        )


SERVE_RM_RULES: tuple[Rule, ...] = (
    refused_flags,
    values_in_range,
    varlen_needs_packing,
    a_model_is_named,
    a_request_may_wait,
)
