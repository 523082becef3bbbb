"""Leaving the device between phases: weights, gradients and optimizer state go to host memory and come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State
from deepspeed.runtime.zero.utils import get_mapping_to_flat_buffer
from torch import Tensor

from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.quantised import scales


def leave(runner: Any, stage: int, spec: EngineSpec) -> None:
    """Move the state of a DeepSpeed engine (or of a plain module) to host memory."""
    if _has_zero_optimizer(stage, spec):
        runner.offload_states(include=_states_deepspeed_moves(stage), pin_memory=True, non_blocking=False)
    if _is_sharded(stage, spec):
        _point_shards_to(runner.optimizer, _on_host(runner.optimizer.lp_param_buffer))
    for tensor in _other_tensors(runner, stage, spec):
        tensor.data = _on_host(tensor)


def come_back(runner: Any, stage: int, spec: EngineSpec, device: torch.device) -> None:
    for tensor in _other_tensors(runner, stage, spec):
        tensor.data = tensor.data.to(device, copy=True)
    if _is_sharded(stage, spec):
        _point_shards_to(runner.optimizer, runner.optimizer.lp_param_buffer.to(device, copy=True))
    if _has_zero_optimizer(stage, spec):
        runner.reload_states(non_blocking=False)


def _on_host(tensor: Tensor) -> Tensor:
    # Pinned: several times faster both ways, and torch keeps the pages for the next time.
    host = torch.empty_like(tensor.data, device="cpu", pin_memory=tensor.device.type != "cpu")
    return host.copy_(tensor.data)


def _point_shards_to(optimizer: Any, flat: Tensor) -> None:
    """Make `flat` what this rank's shards of the trained weights are views of."""
    optimizer.lp_param_buffer.data = flat
    optimizer.fp16_partitioned_groups_flat.clear()
    optimizer._set_fp16_partitioned_groups_flat()
    for shard, offset, size in get_mapping_to_flat_buffer(optimizer._get_parameter_partitions()):
        shard.data = flat.narrow(0, offset, size)


def _has_zero_optimizer(stage: int, spec: EngineSpec) -> bool:
    return spec.trainable and stage > 0


def _is_sharded(stage: int, spec: EngineSpec) -> bool:
    return spec.trainable and stage == 3


def _states_deepspeed_moves(stage: int) -> list[State]:
    everything = list(State)
    if stage < 3:
        return everything
    # At stage 3 it moves optimizer state for its own compiled Adam only (ours is torch's), and takes the buffer
    # of the trained weights for one of all weights, which it is not beside frozen ones.
    return [state for state in everything if state not in (State.optim_states, State.hp_params, State.lp_params)]


def _other_tensors(runner: Any, stage: int, spec: EngineSpec) -> Iterator[Tensor]:
    """What DeepSpeed does not move itself."""
    model = getattr(runner, "module", runner)
    parameters = list(model.parameters())
    if stage == 0:
        yield from parameters
        yield from model.buffers()
    elif not spec.param_offload:
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        yield from (parameter.ds_tensor if stage == 3 else parameter for parameter in frozen)
    yield from (scale for parameter in parameters for scale in scales(parameter))
    if spec.trainable and stage == 0:
        yield from _optimizer_state(runner.optimizer)
    elif _is_sharded(stage, spec) and not spec.adam_offload:
        yield from runner.optimizer.fp32_partitioned_groups_flat
        yield from _optimizer_state(runner.optimizer.optimizer)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
