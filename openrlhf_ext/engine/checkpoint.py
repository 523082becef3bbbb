"""A training state on disk: DeepSpeed's own files, every rank's random state, and what they belong to."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrlhf_ext.engine.deepspeed_config import effective_stage
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import DataError

_TAG = "deepspeed"
_MANIFEST = "engine.json"


def save(engine: Any, folder: Path, spec: EngineSpec, client_state: Mapping[str, Any]) -> None:
    """Write the state of all ranks; the manifest comes last, so a folder that has it is complete."""
    rank = torch.distributed.get_rank()
    folder.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
    torch.save({"random": _random_state(), "client": dict(client_state)}, folder / _rank_file(rank))
    torch.distributed.barrier()
    if rank == 0:
        (folder / _MANIFEST).write_text(json.dumps(_identity(spec)) + "\n")
    torch.distributed.barrier()


def load(engine: Any, folder: Path, spec: EngineSpec) -> Mapping[str, Any]:
    """Raises DataError where the folder is incomplete or was written under another sharding."""
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        raise DataError(
            f"{folder} holds no complete training state ({_MANIFEST} is missing): choose another checkpoint."
        )
    written, wanted = json.loads(manifest.read_text()), _identity(spec)
    for key, name in (("world_size", "ranks"), ("zero_stage", "ZeRO stage"), ("dtype", "parameter type")):
        if written[key] != wanted[key]:
            raise DataError(
                f"The checkpoint {folder} was written with {name} {written[key]}, this run has {wanted[key]}: "
                f"resume with {written[key]}, or start from the exported weights."
            )
    engine.load_checkpoint(str(folder), tag=_TAG)
    # Own files, with numpy and Python state in them, which the weights-only reader refuses.
    state = torch.load(folder / _rank_file(torch.distributed.get_rank()), weights_only=False)
    _restore_random_state(state["random"])
    return state["client"]


def _identity(spec: EngineSpec) -> dict[str, Any]:
    return {
        "world_size": torch.distributed.get_world_size(),
        "zero_stage": effective_stage(spec),
        "dtype": spec.dtype,
    }


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
