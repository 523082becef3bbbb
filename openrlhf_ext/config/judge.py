"""The flags of the judge, a language model that scores answers."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.config.fields import flag, planned

JUDGE = planned("the judge role")


@dataclass(frozen=True, slots=True)
class JudgeSection:
    model_name_or_path: str | None = flag(None, "the judge: a Hugging Face folder or hub name", common=True)
    num_engines: int = flag(1, "its inference engines")
    tensor_parallel_size: int = flag(1, "GPUs of one of them")
    gpu_memory_utilization: float = flag(0.2, "part of a GPU's memory one of them may take")
    max_new_tokens: int = flag(256, "tokens of its longest answer")
    enable_sleep: bool = flag(False, "give the GPU's memory back between scorings (with train.colocate_all)")
