"""A training state on disk: DeepSpeed's own files, every rank's random state, and what they belong to.

Frozen weights are not in it: the base of a model with adapters is read again from where it came from, and the
state knows it by a checksum."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openrlhf_ext.engine.deepspeed_config import effective_stage
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.spec import ModelSpec

_TAG = "deepspeed"
_MANIFEST = "engine.json"
_BASE = "base"


def save(engine: Any, folder: Path, identity: Mapping[str, Any], client_state: Mapping[str, Any]) -> None:
    """Write the state of all ranks; the manifest comes last, so a folder that has it is complete."""
    rank = torch.distributed.get_rank()
    folder.mkdir(parents=True, exist_ok=True)
    with _without_frozen_weights(engine.module):
        engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
    torch.save({"random": _random_state(), "client": dict(client_state)}, folder / _rank_file(rank))
    torch.distributed.barrier()
    if rank == 0:
        (folder / _MANIFEST).write_text(json.dumps(dict(identity)) + "\n")
    torch.distributed.barrier()


def load(engine: Any, folder: Path, identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises DataError where the folder is incomplete or belongs to another model or another sharding."""
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise DataError(
            f"{folder} holds no complete training state ({_MANIFEST} is missing): choose another checkpoint."
        )
    written = json.loads(manifest.read_text())
    for name, value in identity.items():
        if name != _BASE and written.get(name) != value:
            raise DataError(
                f"The checkpoint {folder} was written with {name} {written.get(name)}, this run has {value}: "
                f"resume with {written.get(name)}, or start from the exported weights."
            )
    if written.get(_BASE) != identity[_BASE]:
        raise DataError(
            f"The checkpoint {folder} holds adapters that were trained on another model than this run's: give the "
            "model they were trained on, or start from the exported weights."
        )
    engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not identity[_BASE])
    # Own files, with numpy and Python state in them, which the weights-only reader refuses.
    state = torch.load(folder / _rank_file(torch.distributed.get_rank()), weights_only=False)
    _restore_random_state(state["random"])
    return state["client"]


def identity(spec: EngineSpec, model_spec: ModelSpec, model: nn.Module) -> dict[str, Any]:
    """What a state belongs to, in the words of a message. Collective."""
    lora = model_spec.lora
    targets = lora and " and ".join(sorted(lora.target_modules))
    return {
        "ranks": torch.distributed.get_world_size(),
        "ZeRO stage": effective_stage(spec),
        "parameter type": spec.dtype,
        "adapters": f"of rank {lora.rank} and alpha {lora.alpha} on {targets}" if lora else "none",
        _BASE: _frozen_checksum(model) if lora else None,
    }


def _frozen_checksum(model: nn.Module) -> str:
    """The sum of the frozen weights' bits, read as integers: fast, and the same however they are sharded."""
    frozen = [_own_part(parameter) for parameter in model.parameters() if not parameter.requires_grad]
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    total = sum(part.contiguous().view(kinds[part.element_size()]).sum(dtype=torch.int64) for part in frozen)
    assert isinstance(total, Tensor), "a model with adapters has frozen weights"
    if any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        torch.distributed.all_reduce(total)
    return f"{int(total) % (1 << 64):016x}"


def _own_part(parameter: Any) -> Tensor:
    """What this rank holds of a parameter, without the padding of the last shard."""
    shard: Tensor | None = getattr(parameter, "ds_tensor", None)
    if shard is None:
        return parameter.detach()
    rest = parameter.ds_numel - shard.numel() * torch.distributed.get_rank()
    return shard.detach()[: max(rest, 0)]


@contextmanager
def _without_frozen_weights(model: nn.Module) -> Iterator[None]:
    """While it lasts the model's state dict has no frozen weights, by none of their names (DeepSpeed knows one)."""

    def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        named = module.named_parameters(remove_duplicate=False)
        frozen = tuple(f"{prefix}{name}" for name, parameter in named if not parameter.requires_grad)
        # What bitsandbytes keeps beside a weight: of 4 bits under its name, of 8 under its module's.
        of_4_bits = tuple(f"{name}." for name in frozen)
        of_8_bits = {f"{name.rpartition('.')[0]}.{kept}" for name in frozen for kept in ("SCB", "weight_format")}
        for key in [key for key in state if key in frozen or key in of_8_bits or key.startswith(of_4_bits)]:
            del state[key]

    hook = model.register_state_dict_post_hook(leave_out)
    try:
        yield
    finally:
        hook.remove()


def _rank_file(rank: int) -> str:
    return f"rank{rank}.pt"


def _random_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.accelerator.is_available():
        state["device"] = torch.get_device_module().get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "device" in state:
        torch.get_device_module().set_rng_state(state["device"])
