"""Flags that do something only together with another one: set without it they are an error, not ignored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.config.fields import flags_of, get
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Violation


@dataclass(frozen=True, slots=True)
class Need:
    """`paths`, flags or whole sections, have an effect where `holds`; `of` is how to get there."""

    paths: tuple[str, ...]
    holds: Callable[[RLConfig], bool]
    of: str


def _paths(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names.split())


NEEDS = (
    Need(("critic", "algo.advantage.lambd"), lambda c: c.has_critic, "--algo.advantage.estimator gae"),
    Need(
        _paths("reward.", "normalize_enable num_nodes num_gpus_per_node offload"),
        lambda c: c.has_reward_model,
        "--reward.model_name_or_path",
    ),
    Need(
        _paths("reward.", "http_batch_size http_concurrency http_failures http_cooldown_s"),
        lambda c: "://" in (c.reward.remote_url or ""),
        "a URL in --reward.remote_url",
    ),
    Need(
        _paths("reward.", "format_pattern format_tags"),
        lambda c: "rule:format" in (c.reward.remote_url or ""),
        "rule:format in --reward.remote_url",
    ),
    Need(
        ("reward.length_range",),
        lambda c: "rule:length" in (c.reward.remote_url or ""),
        "rule:length in --reward.remote_url",
    ),
    Need(
        ("reward.answer_pattern",),
        lambda c: "verify:" in (c.reward.remote_url or ""),
        "verify:exact or verify:math in --reward.remote_url",
    ),
    Need(
        ("reward.verify_timeout_s",),
        lambda c: any(name in (c.reward.remote_url or "") for name in ("rule:format", "verify:")),
        "rule:format, verify:exact or verify:math in --reward.remote_url",
    ),
    Need(
        ("ds.value_head_prefix",),
        lambda c: c.has_critic or c.has_reward_model,
        "--algo.advantage.estimator gae or --reward.model_name_or_path",
    ),
    Need(
        ("train.colocate_critic_reward",),
        lambda c: c.has_critic and c.has_reward_model,
        "--algo.advantage.estimator gae and --reward.model_name_or_path",
    ),
    Need(
        ("reward.overlong_penalty_factor",),
        lambda c: c.reward.overlong_buffer_len is not None,
        "--reward.overlong_buffer_len",
    ),
    Need(
        _paths("algo.advantage.is_correction_", "mode gating threshold"),
        lambda c: c.algo.advantage.is_correction_level != "off",
        "--algo.advantage.is_correction_level token or seq",
    ),
    Need(
        _paths(
            "student.",
            "num_nodes num_gpus_per_node offload question_key solution_key prompt tags think_tags solution_prefix "
            "temperature teacher_logprobs solution_terms solution_coefs divergence_terms divergence_coefs missing_tags "
            "debug_dir",
        ),
        lambda c: c.has_student,
        "--student.model_name_or_path or --student.from_reference",
    ),
    Need(
        _paths(
            "judge.",
            "num_engines tensor_parallel_size gpu_memory_utilization enable_sleep enforce_eager kv_cache_gb threads "
            "max_len",
        ),
        lambda c: c.judge.model_name_or_path is not None,
        "--judge.model_name_or_path",
    ),
    Need(
        _paths("judge.", "served_model_name api_key concurrency timeout_s max_retries"),
        lambda c: c.judge.url is not None,
        "--judge.url",
    ),
    Need(
        _paths("judge.", "prompt max_new_tokens temperature cache"),
        lambda c: c.has_judge,
        "--judge.model_name_or_path or --judge.url",
    ),
    Need(_paths("judge.", "mode max_pairs n_samples"), lambda c: c.has_judge_reward, "a judge with --judge.prompt"),
    Need(("ref.sync_mixup",), lambda c: c.ref.sync_steps > 0, "--ref.sync_steps"),
    Need(("agent",), lambda c: c.has_agent, "--train.agent_func_path"),
    Need(("algo.kl.target",), lambda c: c.algo.kl.init_coef > 0, "--algo.kl.init_coef above 0"),
    Need(("algo.kl.horizon",), lambda c: c.algo.kl.target is not None, "--algo.kl.target"),
    Need(("algo.kl.unbiased_gradient",), lambda c: c.algo.kl.use_loss, "--algo.kl.use_loss"),
    Need(
        ("algo.dynamic_filtering_range",),
        lambda c: c.algo.dynamic_filtering_enable,
        "--algo.dynamic_filtering_enable",
    ),
    Need(
        _paths("train.", "async_queue_size partial_rollout_enable"),
        lambda c: c.train.async_enable,
        "--train.async_enable",
    ),
    Need(
        ("train.max_tokens_per_gpu", "rollout.max_tokens_per_gpu"),
        lambda c: c.train.dynamic_batch_enable,
        "--train.dynamic_batch_enable",
    ),
    Need(
        (*_paths("ds.lora.", "alpha target_modules dropout"), "ds.load_in_4bit", "ds.load_in_8bit"),
        lambda c: c.ds.lora.rank > 0,
        "--ds.lora.rank above 0",
    ),
)


def flags_have_an_effect(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    for path, need in _idle(config):
        value = get(config, path)
        if value != flags_of(RLConfig)[path].default:
            shown = None if value is True else value
            yield Violation(f"--{path}", shown, f"it has no effect without {need.of}")


def idle_paths(config: Any) -> frozenset[str]:
    """The flags that have no effect as the others stand."""
    return frozenset(path for path, _ in _idle(config)) if isinstance(config, RLConfig) else frozenset()


def _idle(config: RLConfig) -> Iterator[tuple[str, Need]]:
    for need in NEEDS:
        if not need.holds(config):
            for path in _flags_in(need.paths):
                yield path, need


@functools.cache
def _flags_in(paths: tuple[str, ...]) -> tuple[str, ...]:
    flags = flags_of(RLConfig)
    return tuple(path for path in flags if any(path == name or path.startswith(f"{name}.") for name in paths))
