"""From the rl command's config to the student as a source of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.config import RLConfig
from openrlhf_ext.config.student import StudentFields
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.models.load import load_config
from openrlhf_ext.ops.student_reward import RewardTerms
from openrlhf_ext.rewards.sources import RoleSource
from openrlhf_ext.rewards.student import StudentSettings, StudentSource
from openrlhf_ext.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def student_source(cfg: RLConfig, tokenizer: PreTrainedTokenizerBase) -> StudentSource | None:
    """The student, where there is one. Raises DataError for one that reads other tokens than the policy writes."""
    if not cfg.has_student:
        return None
    path = cfg.student.model_name_or_path or cfg.actor.model_name_or_path
    assert path is not None
    own = load_tokenizer(path, fast=not cfg.data.disable_fast_tokenizer)
    longest = getattr(load_config(path).get_text_config(), "max_position_embeddings", None)
    return StudentSource(path, own, tokenizer, student_settings(cfg), max_tokens=longest or 1 << 62)


def student_settings(cfg: RLConfig) -> StudentSettings:
    student = cfg.student
    return StudentSettings(
        **reading_of(student),
        label_key=cfg.data.label_key,
        templated=cfg.data.apply_chat_template,
        teacher=student.teacher_logprobs,
        from_reference=student.from_reference,
        max_answer_tokens=cfg.rollout.max_new_tokens or cfg.data.max_len,
        max_total_tokens=cfg.data.max_len,
        debug_dir=Path(student.debug_dir) if student.debug_dir else None,
    )


def reading_of(student: StudentFields) -> dict[str, Any]:
    """What a student reads and what that is worth, wherever it runs."""
    return {
        "question_key": student.question_key,
        "solution_key": student.solution_key,
        "prompt": student.prompt,
        "tags": student.tags,
        "think_tags": student.think_tags,
        "solution_prefix": student.solution_prefix,
        "temperature": student.temperature,
        "terms": RewardTerms(
            solution=tuple(zip(student.solution_terms, student.solution_coefs, strict=True)),
            divergence=tuple(zip(student.divergence_terms, student.divergence_coefs, strict=True)),
            missing=student.missing_tags,
        ),
    }


def check_rows(scorers: Sequence[RoleSource], prompts: Sequence[Prompt]) -> None:
    """Raise DataError for a prompt that a student could not read, before any model is loaded."""
    for scorer in scorers:
        if isinstance(scorer, StudentSource):
            scorer.check(prompts)
