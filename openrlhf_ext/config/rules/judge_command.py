"""The rules of `judge calibrate` and `judge serve`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ext.config.judge_command import CalibrateConfig, ServeJudgeConfig
from openrlhf_ext.config.rules.common import refused_flags, values_in_range
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required

OF_ENDPOINT = ("concurrency", "timeout_s", "max_retries", "served_model_name", "api_key")
OF_ENGINE = ("tensor_parallel_size", "gpu_memory_utilization", "enforce_eager", "kv_cache_gb", "threads", "max_len")


def one_judge_is_named(config: Any, explicit: Explicit) -> Iterator[Violation]:
    yield from one_model_is_named(config, explicit, "judge", "the judge", OF_ENGINE)


def one_model_is_named(
    config: Any, explicit: Explicit, section: str, what: str, of_engine: Sequence[str]
) -> Iterator[Violation]:
    """A model of the section, or its endpoint; `of_engine` are its flags that an endpoint has no use for."""
    model = getattr(config, section)
    if model.url is None and model.model_name_or_path is None:
        yield Violation(
            f"--{section}.model_name_or_path", None, f"it is required: {what}, or its endpoint as --{section}.url"
        )
    if model.url is not None and model.model_name_or_path is not None:
        yield Violation(
            f"--{section}.url", model.url, f"--{section}.model_name_or_path names another model; leave out one"
        )
    if model.url is not None and model.served_model_name is None:
        yield Violation(
            f"--{section}.served_model_name", None, f"it is required with --{section}.url: the endpoint's model"
        )
    own = [f"{section}.{name}" for name in OF_ENDPOINT]
    engine = [name if "." in name else f"{section}.{name}" for name in of_engine]
    idle, without = (own, "url") if model.url is None else (engine, "model_name_or_path")
    for path in idle:
        if path in explicit:
            yield Violation(f"--{path}", None, f"it has no effect without --{section}.{without}; leave it out")


def a_rubric_is_named(config: Any, explicit: Explicit) -> Iterator[Violation]:
    yield from required(config, {"judge.prompt": "the rubric, a YAML file"})
    if config.judge.prompt and not Path(config.judge.prompt).expanduser().is_file():
        yield Violation("--judge.prompt", config.judge.prompt, "there is no such file; give a rubric (YAML)")


def votes_differ(config: Any, explicit: Explicit) -> Iterator[Violation]:
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


def what_is_measured_can_be(config: CalibrateConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.judge.mode == "pairwise":
        for name in ("order_rows", "repeats", "repeat_temperature", "repeat_rows", "threshold"):
            if f"calibrate.{name}" in explicit:
                words = "every pair is judged in both orders" if name == "order_rows" else "it is for verdicts on one"
                yield Violation(
                    f"--calibrate.{name}", getattr(config.calibrate, name), f"{words}; leave it out with pairwise"
                )
    elif config.calibrate.repeats == 1:
        for name in ("repeat_temperature", "repeat_rows"):
            if f"calibrate.{name}" in explicit:
                yield Violation(
                    f"--calibrate.{name}", None, "it has no effect with --calibrate.repeats 1; leave it out"
                )


_BOTH: tuple[Rule, ...] = (
    refused_flags, values_in_range, one_judge_is_named, a_rubric_is_named, votes_differ, an_answer_fits
)  # fmt: skip
CALIBRATE_RULES: tuple[Rule, ...] = (*_BOTH, rows_have_labels, what_is_measured_can_be)


def a_request_may_wait(config: ServeJudgeConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.limits.waiting_mb < config.limits.request_mb:
        yield Violation(
            "--limits.waiting_mb", config.limits.waiting_mb, "one request of --limits.request_mb would be more than it"
        )


SERVE_JUDGE_RULES: tuple[Rule, ...] = (*_BOTH, a_request_may_wait)
