"""Leaving the device between phases: weights, gradients and optimizer state go to host memory and come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State
from torch import Tensor

from openrlhf_ext.engine.spec import EngineSpec


def leave(runner: Any, stage: int, spec: EngineSpec) -> None:
    """Move the state of a DeepSpeed engine (or of a plain module) to host memory."""
    if _has_zero_optimizer(stage, spec):
        runner.offload_states(include=_states_deepspeed_moves(stage), pin_memory=True, non_blocking=False)
    for tensor in _other_tensors(runner, stage, spec):
        # Pinned: several times faster both ways, and torch keeps the pages for the next time.
        host = torch.empty_like(tensor.data, device="cpu", pin_memory=tensor.device.type != "cpu")
        tensor.data = host.copy_(tensor.data)


def come_back(runner: Any, stage: int, spec: EngineSpec, device: torch.device) -> None:
    for tensor in _other_tensors(runner, stage, spec):
        tensor.data = tensor.data.to(device, copy=True)
    if _has_zero_optimizer(stage, spec):
        runner.reload_states(non_blocking=False)


def _has_zero_optimizer(stage: int, spec: EngineSpec) -> bool:
    return spec.trainable and stage > 0


def _states_deepspeed_moves(stage: int) -> list[State]:
    everything = list(State)
    if stage < 3:
        return everything
    # At stage 3 it moves optimizer state for its own compiled Adam only; ours is torch's.
    return [state for state in everything if state not in (State.optim_states, State.hp_params)]


def _other_tensors(runner: Any, stage: int, spec: EngineSpec) -> Iterator[Tensor]:
    """What DeepSpeed does not move itself."""
    if not spec.trainable:
        if stage != 3:
            yield from runner.parameters()
            yield from runner.buffers()
        elif not spec.param_offload:
            yield from (parameter.ds_tensor for parameter in runner.module.parameters())
    elif stage == 0:
        yield from runner.module.parameters()
        yield from runner.module.buffers()
        yield from _optimizer_state(runner.optimizer)
    elif stage == 3 and not spec.adam_offload:
        yield from runner.optimizer.fp32_partitioned_groups_flat
        yield from _optimizer_state(runner.optimizer.optimizer)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
