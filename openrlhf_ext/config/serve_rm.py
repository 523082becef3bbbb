"""The flags of `openrlhf-ext serve-rm`, with the names, types and defaults of OpenRLHF 0.11.2's serve_rm."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import declined, flag, section
from openrlhf_ext.config.sections import MOE, DeviceSection, ParamDtype
from openrlhf_ext.config.student import ServedStudentSection


@dataclass(frozen=True, slots=True)
class ServedModelSection:
    model_name_or_path: str | None = flag(
        None, "the reward or preference model: a Hugging Face folder or hub name", common=True
    )
    normalize_enable: bool = flag(False, "scores by the mean and std that the model's config.json knows", common=True)


@dataclass(frozen=True, slots=True)
class QueryDataSection:
    max_len: int = flag(2048, "tokens of the longest query; a longer one loses its beginning", common=True)
    disable_fast_tokenizer: bool = flag(False, "use the slow tokenizer")


@dataclass(frozen=True, slots=True)
class ServedDsSection:
    param_dtype: ParamDtype = flag("bf16", "number format of parameters and activations", common=True)
    attn_implementation: str = flag(
        "flash_attention_2", "attention kernel (sdpa, eager, flash_attention_2, torch_varlen, ...)"
    )
    packing_samples: bool = flag(False, "put several queries in one row instead of padding")
    load_in_4bit: bool = flag(False, "4-bit (NF4) weights")
    value_head_prefix: str = flag("score", "name of the head that gives scores")
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm", "deepgemm"] | None = flag(
        None, "kernel of mixture-of-experts layers", refused=MOE
    )


@dataclass(frozen=True, slots=True)
class LimitsSection:
    """Further requests are answered by an HTTP status: 413 for one that is too large, 503 for one too many."""

    request_mb: int = flag(128, "MB of one request at the most")
    waiting_mb: int = flag(1024, "MB of all requests that wait for their scores at the most")


@dataclass(frozen=True, slots=True)
class ServeRMConfig:
    """`openrlhf-ext serve-rm`: a reward model, or a student, behind HTTP."""

    reward: ServedModelSection = section(ServedModelSection, "the model")
    student: ServedStudentSection = section(ServedStudentSection, "RLT's reward instead: a student")
    data: QueryDataSection = section(QueryDataSection, "what it reads")
    ds: ServedDsSection = section(ServedDsSection, "number formats, kernels")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    limits: LimitsSection = section(LimitsSection, "what is taken at a time")
    host: str = flag("127.0.0.1", "address to listen on (loopback: this machine only; 0.0.0.0: whoever reaches it)")
    port: int = flag(5000, "port to listen on (0: any free one)")
    batch_size: int | None = flag(None, "queries in one forward pass (not set: as many as 16384 tokens hold)")
    use_ms: bool = flag(False, "ModelScope instead of the Hugging Face hub", refused=declined("ModelScope"))
