"""How a model is sharded and optimised, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.spec import Dtype

ZeroStage = Literal[0, 1, 2, 3]

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
)
"""The schedules of transformers that follow from their length, warm-up and lowest rate alone."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """ZeRO (arXiv:1910.02054), AdamW (arXiv:1711.05101) and the learning-rate schedule.

    `total_steps` are the optimizer steps of the whole run, of which `warmup_ratio` warm up;
    `lr_scheduler` is one of SCHEDULES (ConfigError otherwise). `max_norm` 0 does not clip.
    With bf16 or fp16 the optimizer holds a float32 copy of the weights at every stage
    (`engine.deepspeed_config.effective_stage` says which stage runs).
    """

    zero_stage: ZeroStage = 2
    dtype: Dtype = "bf16"
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 1.0
    lr_scheduler: str = "cosine_with_min_lr"
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.1
    total_steps: int = 1
    eight_bit: bool = False  # the optimizer's moments in 8 bits (Dettmers et al. 2021, arXiv:2110.02861)
    adam_offload: bool = False  # optimizer state and step on the CPU
    param_offload: bool = False  # weights of a frozen stage-3 model on the CPU between uses
    overlap_comm: bool = False
    zpg: int = 1  # ZeRO++ (arXiv:2306.10209): ranks over which stage 3 shards the weights a second time
    grad_accum_dtype: Dtype | None = None  # None: DeepSpeed's choice
    seed: int = 42
    deterministic: bool = False
    trainable: bool = True

    def __post_init__(self) -> None:
        assert self.zero_stage in (0, 1, 2, 3), "ZeRO has stages 0 to 3"
        if self.lr_scheduler not in SCHEDULES:
            raise ConfigError(f"lr_scheduler {self.lr_scheduler} is not supported: give one of {', '.join(SCHEDULES)}.")
        assert self.total_steps > 0, "a schedule needs its length"
        assert not (self.eight_bit and self.adam_offload), "bitsandbytes' optimizer runs where the gradients are"
        assert not (self.param_offload and self.trainable), "weights in training stay on the device"
