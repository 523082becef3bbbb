"""The judge: its model's files and tokenizer, its rubric on the first prompts, its endpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

from openrlhf_ext.cli.checks.finding import Finding, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject, is_missing
from openrlhf_ext.errors import UserError

AREA = "judge"
ENDPOINT, PROMPTS = 0.4, 0.3
"""Parts of the time of all checks: for the endpoint to answer, to wait for the first prompts."""


def find_judge(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    if not config.has_judge:
        return
    if config.judge.prompt is not None:
        yield from _rubric(subject)
    if config.judge.url is not None:
        yield _endpoint(subject)


def _rubric(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.rewards.judge.judge import Judge
    from openrlhf_ext.rewards.judge.rubric_file import load_rubric
    from openrlhf_ext.rewards.judge.source import JudgeSource

    path = subject.config.judge.prompt
    try:
        rubric = load_rubric(path)
        prompts = subject.wait_for_prompts(PROMPTS * subject.limit_s)
        JudgeSource(Judge(rubric), path).check_rows(prompts)
    except UserError as raised:
        yield of_error(AREA, raised)
        return
    names = ", ".join(criterion.name for criterion in rubric.criteria)
    if prompts:
        yield ok(AREA, f"the rubric {path} ({names}) can be shown with the first prompts")
    else:
        text = f"the rubric {path} ({names}) can be read, and was not shown with a row, for want of prompts"
        yield warning(AREA, text, "mend the data, and check again.")


def find_model(subject: Subject) -> Iterator[Finding]:
    if subject.config.judge.model_name_or_path is None:
        return
    from openrlhf_ext.cli.checks.models import weight_shapes
    from openrlhf_ext.config.judge import longest_judgement
    from openrlhf_ext.data.tokenizer import load_tokenizer
    from openrlhf_ext.models.load import load_config

    config = subject.config
    path = config.judge.model_name_or_path
    try:
        text = load_config(path).get_text_config()
        tokenizer = load_tokenizer(path, fast=not config.data.disable_fast_tokenizer)
    except UserError as raised:
        yield of_error(AREA, raised)
        subject.broken_models.add(path)
        return
    if is_missing(path) or not Path(path).is_dir():
        yield ok(AREA, f"{path}: the hub or its local cache has it")
    else:
        parameters = sum(math.prod(shape) for shape in weight_shapes(path).values())
        yield ok(AREA, f"{path}: {parameters:,} parameters")
    if not tokenizer.chat_template:
        yield warning(
            AREA,
            f"the tokenizer of {path} has no chat template, so questions are plain text to it",
            "give an instruction-tuned judge, if it was trained on conversations.",
        )
    longest = longest_judgement(config, getattr(text, "max_position_embeddings", None))
    if longest <= config.data.max_len + config.judge.max_new_tokens:
        yield warning(
            AREA,
            f"{path} reads {longest} tokens, question and answer together, and a conversation may have "
            f"{config.data.max_len}: what is longer has no verdict",
            "give a judge that reads more, or raise --judge.max_len.",
        )


def _endpoint(subject: Subject) -> Finding:
    from openrlhf_ext.cli.rl_judge import endpoint_of

    judge = subject.config.judge
    short = dataclasses.replace(judge, timeout_s=min(judge.timeout_s, ENDPOINT * subject.limit_s))
    try:
        endpoint = endpoint_of(short)
        try:
            endpoint.check()
        finally:
            endpoint.close()
    except UserError as raised:
        return of_error(AREA, raised)
    return ok(AREA, f"{endpoint.name} answered a trial question as its schema says")
