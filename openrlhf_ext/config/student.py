"""The flags of the student, a frozen model whose log-probs reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import flag


@dataclass(frozen=True, slots=True)
class StudentFields:
    """What a student reads, and what its log-probs are worth."""

    question_key: str = flag("question", "column of the question, which is all the student is told")
    solution_key: str = flag("solution", "column of the solution, whose log-probs reward")
    prompt: str | None = flag(
        None,
        "Jinja of what it is told, with {{ question }} and the row's columns (not set: as data.apply_chat_template)",
    )
    tags: tuple[str, str] = flag(
        ("<explanation>", "</explanation>"), "the explanation stands between them in the policy's answer"
    )
    think_tags: tuple[str, str] = flag(
        ("<think>\n", "\n</think>\n\n"), "what stands around the explanation where the student reads it"
    )
    solution_prefix: str = flag("", "what stands before the solution there")
    temperature: float = flag(0.7, "of the log-probs, the policy's and the student's")
    solution_terms: tuple[str, ...] = flag(
        ("mean", "min"), "reductions of the solution's log-probs: mean, min, max, median, quartile1, quartile3"
    )
    solution_coefs: tuple[float, ...] = flag((1.0, 0.01), "their weights, which are added")
    divergence_terms: tuple[str, ...] = flag(
        ("mean", "max"), "reductions over the explanation of how much likelier the policy finds it than the student"
    )
    divergence_coefs: tuple[float, ...] = flag((3.0, 0.03), "their weights, which are subtracted")
    missing_tags: float = flag(-1.0, "added to the reward of an answer without its tags")


@dataclass(frozen=True, slots=True)
class StudentSection(StudentFields):
    model_name_or_path: str | None = flag(None, "the student: a Hugging Face folder or hub name", common=True)
    from_reference: bool = flag(False, "the reference is the student too, instead of a model of its own")
    num_nodes: int = flag(1, "machines of the student")
    num_gpus_per_node: int = flag(1, "its ranks on each machine (on a CPU: processes)")
    offload: bool = flag(False, "keep the student's parameters in host memory")
    teacher_logprobs: Literal["sampler", "policy"] = flag(
        "sampler", "the policy's log-probs of its explanation: as it was sampled, or of a forward pass of its own"
    )
    debug_dir: str | None = flag(None, "folder for every sample's explanation, terms and log-probs (parquet)")


@dataclass(frozen=True, slots=True)
class ServedStudentSection(StudentFields):
    model_name_or_path: str | None = flag(
        None, "serve RLT's reward by this student, instead of a reward model: a folder or hub name", common=True
    )
    teacher_name_or_path: str | None = flag(
        None, "whose log-probs an explanation's are, given question and solution (not set: the student's own)"
    )
    apply_chat_template: bool = flag(False, "tell the student the question by the chat template")
