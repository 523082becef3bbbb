"""A sleeping engine holds nothing of what it had on its device.

Without a GPU there is no other memory to go to, but the move is the same: to new storage. The old one
must be gone, or a GPU would not be free for the engines.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_scenarios as scenarios
import pytest
import torch
from engine_scenarios import SPEC, engine_of, rows, train_step
from torch import Tensor

from openrlhf_ext.device import Device

pytestmark = pytest.mark.timeout(240)

TRAINED, FROZEN = (0, 1, 2, 3), (0, 3)


def state_of(engine: Any) -> Iterator[Tensor]:
    """Weights and the optimizer's weights; at stages 1 and 2 without its moments, which only a GPU's move replaces."""
    for parameter in engine.model.parameters():
        yield parameter.data
        yield getattr(parameter, "ds_tensor", parameter.data)
    if engine.spec.trainable:
        for group in engine._runner.optimizer.param_groups:
            yield from (parameter.data for parameter in group["params"])
        if engine.stage == 3:
            yield from engine._runner.optimizer.fp32_partitioned_groups_flat
        if engine.stage in (0, 3):
            optimizer = engine._runner.optimizer if engine.stage == 0 else engine._runner.optimizer.optimizer
            yield from (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))


def watched(engine: Any) -> tuple[int, list[tuple[weakref.ref[Any], int]]]:
    """Bytes of the state, and its storages without holding them."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in state_of(engine)}
    sizes = [(weakref.ref(storage), storage.nbytes()) for storage in storages.values() if storage.nbytes()]
    return sum(size for _, size in sizes), sizes


def left_behind(rank: int, world_size: int, device: Device, path: Path) -> dict[str, tuple[int, int, float]]:
    """By engine: bytes before the sleep, bytes of them still there in the sleep, the change of the log-probs."""
    sleeper = replace(device, capabilities=device.capabilities | {"sleep"})
    answer = {}
    for name, stage in [*(("trained", s) for s in TRAINED), *(("frozen", s) for s in FROZEN)]:
        engine = engine_of(path, sleeper, replace(SPEC, zero_stage=stage, trainable=name == "trained"))
        if engine.spec.trainable:
            train_step(engine, 0)
        before = engine.forward(rows(1))
        held, storages = watched(engine)
        engine.sleep()
        gc.collect()
        left = sum(size for storage, size in storages if storage() is not None)
        engine.wake()
        answer[f"{name} {stage}"] = (held, left, float((engine.forward(rows(1)) - before).abs().max()))
    return answer


def stayed_on_the_host(rank: int, world_size: int, device: Device, path: Path) -> dict[int, tuple[bool, list[float]]]:
    """By stage, with the optimizer on the CPU: whether its tensors are where they were before a sleep, and the losses
    of two steps without a sleep between them and with one."""
    sleeper = replace(device, capabilities=device.capabilities | {"sleep"})
    answer = {}
    for stage in (1, 2, 3):
        spec = replace(SPEC, zero_stage=stage, adam_offload=True)
        engine = engine_of(path, sleeper, spec)
        train_step(engine, 0)
        offloaded = [t for state in engine._runner.optimizer.optimizer.state.values() for t in state.values()]
        names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
        offloaded += next(getattr(engine._runner.optimizer, n) for n in names if hasattr(engine._runner.optimizer, n))
        before = [t.data_ptr() for t in offloaded]
        engine.sleep()
        engine.wake()
        same = before == [t.data_ptr() for t in offloaded]
        awake = engine_of(path, device, spec)
        train_step(awake, 0)
        answer[stage] = (same, [train_step(each, 1)["loss"].value for each in (engine, awake)])
    return answer


def both(rank: int, world_size: int, device: Device, path: Path) -> dict[str, Any]:
    return {
        **left_behind(rank, world_size, device, path),
        "offload": stayed_on_the_host(rank, world_size, device, path),
    }


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sleep")
    scenarios.build_model(folder / "model", tied=True)
    return scenarios.spawn(1, both, folder, folder / "model")[0]


@pytest.mark.parametrize("engine", [*(f"trained {s}" for s in TRAINED), *(f"frozen {s}" for s in FROZEN)])
def test_a_sleeping_engine_lets_go_of_its_memory(answer, engine):
    held, left, changed = answer[engine]
    assert held > 40_000, "the model's weights are watched"
    assert left < 0.05 * held
    assert changed == 0.0


def test_the_watch_sees_what_is_held():
    tensor = torch.ones(1000)
    alias, storage = tensor[10:], weakref.ref(tensor.untyped_storage())
    del tensor
    gc.collect()
    assert storage() is not None
    del alias
    gc.collect()
    assert storage() is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_on_the_host_stays_there(answer, stage):
    same, (slept, awake) = answer["offload"][stage]
    assert same
    assert slept == awake
