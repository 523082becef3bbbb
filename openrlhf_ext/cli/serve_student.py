"""`serve-rm --student.model_name_or_path`: RLT's reward behind HTTP, of texts whose sampler is somewhere else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cli.rl_student import reading_of
from openrlhf_ext.cli.specs import model_path
from openrlhf_ext.config import ServeRMConfig
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device
from openrlhf_ext.models.build import check_spec
from openrlhf_ext.models.frozen import LocalLogprobs
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.rewards.line import Line
from openrlhf_ext.rewards.server import Form
from openrlhf_ext.rewards.student import StudentSettings, StudentSource
from openrlhf_ext.rewards.student_server import student_cases, student_form
from openrlhf_ext.track.progress import waiting


def student_line(
    cfg: ServeRMConfig, spec: ModelSpec, device: Device, split: SplitSettings, max_tokens: int, say: Any
) -> tuple[Line, Form]:
    """The student and its teacher in this process; one model where both are the same.

    Raises UserError before a model is loaded where the files are no use.
    """
    fast = not cfg.data.disable_fast_tokenizer
    teacher = replace(spec, path=model_path(cfg.student.teacher_name_or_path or spec.path))
    check_spec(teacher)
    tokenizer = load_tokenizer(teacher.path, fast=fast)
    settings = StudentSettings(**reading_of(cfg.student), templated=cfg.student.apply_chat_template, teacher="policy")
    source = StudentSource(spec.path, load_tokenizer(spec.path, fast=fast), tokenizer, settings, max_tokens=max_tokens)
    with waiting("the models to load"):
        student = LocalLogprobs(spec, device, split)
        policy = student if teacher.path == spec.path else LocalLogprobs(teacher, device, split)
    source.connect(SimpleNamespace(student=student, policy=policy))
    return Line(student_cases(source), say), student_form(source, tokenizer)
