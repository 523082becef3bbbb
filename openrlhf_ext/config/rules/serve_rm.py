"""The rules of `serve-rm`, which has neither data sets nor checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.rules.common import refused_flags, values_in_range, varlen_needs_packing
from openrlhf_ext.config.rules.student import tags_can_be_found, terms_have_weights
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required
from openrlhf_ext.config.serve_rm import ServeRMConfig


def a_model_is_named(config: ServeRMConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.student.model_name_or_path is None:
        yield from required(
            config, {"reward.model_name_or_path": "the reward model, a Hugging Face folder or hub name"}
        )


def one_kind_of_model(config: ServeRMConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.student.model_name_or_path is None:
        idle = sorted(path for path in explicit if path.startswith("student."))
        reason = "it has no effect without --student.model_name_or_path"
    else:
        of_scorer = {"reward.model_name_or_path", "reward.normalize_enable", "ds.value_head_prefix", "ds.load_in_4bit"}
        idle = sorted(explicit & of_scorer)
        reason = "it is of a reward model; leave it out, or --student.model_name_or_path"
    yield from (Violation(f"--{path}", None, reason) for path in idle)


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
    one_kind_of_model,
    terms_have_weights,
    tags_can_be_found,
    a_request_may_wait,
)
