"""bf16 on a GPU at every ZeRO stage: small learning rates reach the weights, a resumed run goes on bit for bit."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_scenarios as scenarios
import pytest
import torch
from engine_scenarios import SPEC

from openrlhf_ext.device import Device

STAGES = [0, 1, 2, 3]


def half(rank: int, world_size: int, device: Device, path: Path, folder: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {"learned": {}, "resumed": {}}
    for stage in STAGES:
        answer["learned"][stage] = scenarios.learn_in_bf16(path, device, stage)
        spec = replace(SPEC, dtype="bf16", zero_stage=stage)
        answer["resumed"][stage] = scenarios.resume(path, device, spec, folder / f"state-{stage}")
        gc.collect()
        device.empty_cache()
    return answer


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("half")
    scenarios.build_model(folder / "model", tied=True)
    return scenarios.spawn(1, half, folder, folder / "model", folder, device="cuda")[0]


@pytest.mark.parametrize("stage", STAGES)
def test_small_learning_rates_reach_bf16_weights(answer: dict[str, Any], stage: int):
    """20 steps of 1e-6, each below half a rounding step of weights of this size: float32 master weights add them up."""
    learned = answer["learned"][stage]
    before = torch.cat([tensor.flatten() for tensor in learned["before"].values()])
    after = torch.cat([tensor.flatten() for tensor in learned["after"].values()])
    size = before.float().abs()
    between = (size > 1e-3) & (size < 2e-3)  # half a rounding step is 3.8e-6 there
    moved = (after.float() - before.float()).abs()[between]
    assert between.sum() > 50
    assert 1.5e-5 < moved.median() < 2.5e-5


@pytest.mark.parametrize("stage", STAGES)
def test_resumes(answer: dict[str, Any], stage: int):
    through, again = answer["resumed"][stage]["through"], answer["resumed"][stage]["again"]
    assert torch.equal(again["drawn"], through["drawn"])
    # Sums on a GPU come in no fixed order, so its steps repeat to rounding only.
    for name, tensor in through["weights"].items():
        assert scenarios.relative_l2(again["weights"][name].float(), tensor.float()) < 1e-2, name
