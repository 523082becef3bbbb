"""The flags of the student, a frozen model whose log-probs reward."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.config.fields import flag, planned

STUDENT = planned("a reward from a student model")


@dataclass(frozen=True, slots=True)
class StudentSection:
    model_name_or_path: str | None = flag(None, "the student: a Hugging Face folder or hub name")
    num_nodes: int = flag(1, "machines of the student")
    num_gpus_per_node: int = flag(1, "its ranks on each machine (on a CPU: processes)")
    offload: bool = flag(False, "keep the student's parameters in host memory")
