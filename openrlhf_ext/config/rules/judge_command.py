"""The rules of `judge calibrate` and `judge serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_ext.config.judge_command import CalibrateConfig, ServeJudgeConfig
from openrlhf_ext.config.rules.common import refused_flags, values_in_range
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required

OF_ENDPOINT = ("concurrency", "timeout_s", "max_retries", "served_model_name", "api_key")
OF_ENGINE = ("tensor_parallel_size", "gpu_memory_utilization", "enforce_eager", "kv_cache_gb", "threads", "max_len")


def one_judge_is_named(config: Any, explicit: Explicit) -> Iterator[Violation]:
    judge = config.judge
    if judge.url is None and judge.model_name_or_path is None:
        yield Violation("--judge.model_name_or_path", None, "it is required: the judge, or its endpoint as --judge.url")
    if judge.url is not None and judge.model_name_or_path is not None:
        yield Violation("--judge.url", judge.url, "--judge.model_name_or_path names another judge; leave out one")
    if judge.url is not None and judge.served_model_name is None:
        yield Violation("--judge.served_model_name", None, "it is required with --judge.url: the endpoint's model")
    idle, without = (OF_ENDPOINT, "--judge.url") if judge.url is None else (OF_ENGINE, "--judge.model_name_or_path")
    for name in idle:
        if f"judge.{name}" in explicit:
            yield Violation(f"--judge.{name}", None, f"it has no effect without {without}; leave it out")


def a_rubric_is_named(config: CalibrateConfig | ServeJudgeConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from required(config, {"judge.prompt": "the rubric, a YAML file"})
    if config.judge.prompt and not Path(config.judge.prompt).expanduser().is_file():
        yield Violation("--judge.prompt", config.judge.prompt, "there is no such file; give a rubric (YAML)")


def votes_differ(config: CalibrateConfig | ServeJudgeConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.judge.n_samples > 1 and config.judge.temperature == 0:
        yield Violation(
            "--judge.n_samples",
            config.judge.n_samples,
            "at temperature 0 all of them are alike; set --judge.temperature above 0",
        )


def an_answer_fits(config: Any, explicit: Explicit) -> Iterator[Violation]:
    judge = config.judge
    if judge.max_len <= judge.max_new_tokens:
        yield Violation(
            "--judge.max_len",
            judge.max_len,
            f"it is for question and answer together; raise it above --judge.max_new_tokens {judge.max_new_tokens}",
        )


def rows_have_labels(config: CalibrateConfig, explicit: Explicit) -> Iterator[Violation]:
    data = config.data
    yield from required(config, {"data.dataset": "the labelled rows"})
    pairs = data.right_key is not None or data.wrong_key is not None
    if pairs and (data.response_key or data.label_key or data.right_values):
        yield Violation(
            "--data.right_key",
            data.right_key,
            "it takes the place of --data.response_key, --data.label_key and --data.right_values; leave those out",
        )
    elif pairs:
        yield from required(config, {"data.right_key": "column of a right response"})
        yield from required(config, {"data.wrong_key": "column of a wrong response"})
    else:
        yield from required(config, {"data.response_key": "column of the response (or give right_key and wrong_key)"})
        yield from required(config, {"data.label_key": "column that says whether it is right"})
    if config.judge.mode == "pairwise" and not pairs:
        yield Violation(
            "--judge.mode", "pairwise", "it compares two responses; give --data.right_key and --data.wrong_key"
        )


def one_criterion_has_no_order(config: CalibrateConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.judge.mode == "pairwise" and "calibrate.order_rows" in explicit:
        yield Violation(
            "--calibrate.order_rows", config.calibrate.order_rows, "every pair is judged in both orders; leave it out"
        )
    if config.calibrate.repeats == 1:
        for name in ("repeat_temperature", "repeat_rows"):
            if f"calibrate.{name}" in explicit:
                yield Violation(
                    f"--calibrate.{name}", None, "it has no effect with --calibrate.repeats 1; leave it out"
                )


_BOTH: tuple[Rule, ...] = (
    refused_flags, values_in_range, one_judge_is_named, a_rubric_is_named, votes_differ, an_answer_fits
)  # fmt: skip
CALIBRATE_RULES: tuple[Rule, ...] = (*_BOTH, rows_have_labels, one_criterion_has_no_order)


def a_request_may_wait(config: ServeJudgeConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.limits.waiting_mb < config.limits.request_mb:
        yield Violation(
            "--limits.waiting_mb", config.limits.waiting_mb, "one request of --limits.request_mb would be more than it"
        )


SERVE_JUDGE_RULES: tuple[Rule, ...] = (*_BOTH, a_request_may_wait)
