"""AdamW and the learning-rate schedule of an engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec


def build_optimizer(model: nn.Module, spec: EngineSpec, device: Device) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) in torch's fused form; biases and norms (one dimension) do not decay.

    With `eight_bit` by bitsandbytes, whose moments a GPU pages out to host memory when it is full.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # a sharded parameter is empty here
            (decayed if len(shape) > 1 else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if spec.eight_bit:
        import bitsandbytes

        paged = bitsandbytes.optim.PagedAdamW8bit if device.can("sleep") else bitsandbytes.optim.AdamW8bit
        return paged(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


def build_schedule(spec: EngineSpec) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    """The schedule by its transformers name, over `total_steps` optimizer steps."""
    extra = {"min_lr_rate": spec.min_lr_ratio} if spec.lr_scheduler.endswith("with_min_lr") else None

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return get_scheduler(
            spec.lr_scheduler,
            optimizer,
            num_warmup_steps=math.ceil(spec.total_steps * spec.warmup_ratio),
            num_training_steps=spec.total_steps,
            scheduler_specific_kwargs=extra,
        )

    return schedule
