"""What an engine is made of, and how vLLM is asked for it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openrlhf_ext.device import Device
from openrlhf_ext.errors import DataError, OutOfMemory, ResourceError, Shortage
from openrlhf_ext.rollout.agents.settings import AgentSettings
from openrlhf_ext.rollout.transfer import Transport

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs


ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has room for; adapters of another one take the next."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is made of. Sizes in tokens and GiB; `None` leaves the choice to vLLM."""

    model: str  # a Hugging Face folder or hub name, with its tokenizer
    transport: Transport | None  # None: its weights never change
    max_model_len: int  # prompt and response together
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    seed: int = 0
    max_num_seqs: int = 256  # requests in one engine step
    enable_prefix_caching: bool = True
    # A judge's answers may be bound to a JSON schema; evaluated is a model as it is.
    role: Literal["engines", "judge", "evaluated"] = "engines"
    adapters: str | None = None  # a folder of peft's, with which an evaluated model answers
    adapter_rank: int = 0
    agent: AgentSettings | None = None  # it plays episodes
    partial: bool = False  # weights may be replaced while another thread generates: answers go on under the new ones
    # GPU only
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    enable_sleep: bool = False
    # CPU only
    kv_cache_gb: float = 0.25


def start_engine(settings: EngineSettings, device: Device, sleep: bool) -> Any:
    if device.kind == "cpu":
        need_libnuma()
    if settings.model.startswith((".", "/")) and not (Path(settings.model) / "config.json").is_file():
        raise DataError(f"{settings.model} holds no config.json: give a folder written by save_pretrained.")
    from vllm.v1.engine.llm_engine import LLMEngine

    try:
        return LLMEngine.from_engine_args(_engine_args(settings, device, sleep))
    except ValueError as error:
        # vLLM's only type for "does not fit"; other ValueErrors are about the model and speak for themselves.
        if "memory" not in str(error).lower():
            raise
        section = "judge" if settings.role == "judge" else "vllm"
        remedy = f"{section}.kv_cache_gb" if device.kind == "cpu" else f"{section}.gpu_memory_utilization"
        reason = (
            f"the engine cannot serve sequences of {settings.max_model_len} tokens with {settings.model}: "
            f"change --{remedy} or shorten the lengths; vLLM says: {str(error).partition('. ')[0]}"
        )
        raise OutOfMemory(Shortage(settings.role, "load", reason)) from error


def _engine_args(settings: EngineSettings, device: Device, sleep: bool) -> EngineArgs:
    from vllm.engine.arg_utils import EngineArgs

    of_device: Mapping[str, Any]
    if device.kind == "cpu":
        of_device = {
            "enforce_eager": True,
            # vLLM's default is most of the machine's memory.
            "kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30),
            # A seeded request whose prompt is computed in parts crashes on a CPU (it rewinds its
            # generator, which a CPU generator cannot): every prompt is computed at once.
            "enable_chunked_prefill": False,
            # One of full length must fit beside a token for every other: an update sends answers that are
            # under way back to be computed anew.
            "max_num_batched_tokens": max(settings.max_model_len + settings.max_num_seqs, 8192),
        }
    else:
        of_device = {
            "tensor_parallel_size": settings.tensor_parallel_size,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": settings.enforce_eager,
            "enable_sleep_mode": sleep,
        }
    return EngineArgs(
        model=settings.model,
        dtype=settings.dtype,
        seed=settings.seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        trust_remote_code=False,
        enable_prefix_caching=settings.enable_prefix_caching,
        logprobs_mode="processed_logprobs",
        distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **of_device,
        **_of_role(settings),
    )


def _of_role(settings: EngineSettings) -> dict[str, Any]:
    if settings.role == "judge":
        # White space between the parts of an answer would be tokens that say nothing.
        return {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
    if settings.role == "evaluated":
        if settings.adapters is None:
            return {}
        rank = next(rank for rank in ADAPTER_RANKS if rank >= settings.adapter_rank)
        return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    from vllm.config.weight_transfer import WeightTransferConfig

    from openrlhf_ext.rollout.receiver import PREFIX, WorkerExtension

    assert settings.transport is not None, "an engine that samples from the policy gets its weights"
    return {
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        "weight_transfer_config": WeightTransferConfig(backend=PREFIX + settings.transport),
    }


def need_libnuma() -> None:
    """Raises ResourceError where vLLM could not be imported on a CPU for want of it."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise ResourceError(
            "vLLM on a CPU needs libnuma, which this machine lacks: install libnuma1 (apt-get install libnuma1)."
        ) from error
