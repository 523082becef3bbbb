from __future__ import annotations

import math

import pytest
import torch

from openrlhf_ext.device import Device
from openrlhf_ext.engine.deepspeed_config import deepspeed_config, effective_stage
from openrlhf_ext.engine.optimizer import build_optimizer, build_schedule
from openrlhf_ext.engine.spec import SCHEDULES, EngineSpec
from openrlhf_ext.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "stage"),
    [
        ({"dtype": "fp32", "zero_stage": 0}, 0),
        ({"dtype": "bf16", "zero_stage": 0}, 1),
        ({"dtype": "fp16", "zero_stage": 0}, 1),
        ({"dtype": "fp32", "zero_stage": 0, "adam_offload": True}, 1),
        ({"dtype": "bf16", "zero_stage": 1, "grad_accum_dtype": "fp32"}, 3),
        ({"dtype": "bf16", "zero_stage": 3, "grad_accum_dtype": "fp32"}, 3),
        ({"zero_stage": 2, "trainable": False}, 0),
        ({"zero_stage": 3, "trainable": False}, 3),
        ({"zero_stage": 0, "trainable": False, "param_offload": True}, 3),
    ],
)
def test_the_stage_that_runs(fields, stage):
    assert effective_stage(EngineSpec(**fields)) == stage


CPU = Device("cpu", 0, frozenset())


def test_overlap_is_asked_for_only_where_gradients_are_reduced_as_they_come():
    for stage, overlaps in ((1, False), (2, True), (3, True)):
        spec = EngineSpec(zero_stage=stage, overlap_comm=True)
        assert deepspeed_config(spec, 2, 64, ordered=True)["zero_optimization"]["overlap_comm"] is overlaps


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_built_and_starts_within_the_rate(name):
    spec = EngineSpec(lr=0.5, lr_scheduler=name, total_steps=10, warmup_ratio=0.2)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), spec, CPU)
    schedule = build_schedule(spec)(optimizer)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert all(0 <= rate <= 0.5 for rate in rates) and max(rates) == 0.5


def test_the_default_schedule_is_a_cosine_down_to_its_lowest_rate():
    spec = EngineSpec(lr=2.0, total_steps=10, warmup_ratio=0.15, min_lr_ratio=0.25)
    schedule = build_schedule(spec)(build_optimizer(torch.nn.Linear(2, 2), spec, CPU))
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    warm = [0.0, 1.0]
    cosine = [2.0 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * k / 8))) for k in range(9)]
    assert rates == pytest.approx(warm + cosine)


def test_an_unknown_schedule_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="warmup_stable_decay is not supported: give one of linear"):
        EngineSpec(lr_scheduler="warmup_stable_decay")


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    groups = build_optimizer(model, EngineSpec(weight_decay=0.1), CPU).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0.0)]


@pytest.mark.parametrize("ordered", [True, False])
def test_gathers_wait_for_each_other_where_their_order_is_not_given(ordered: bool):
    zero = deepspeed_config(EngineSpec(zero_stage=3), 2, 64, ordered=ordered)["zero_optimization"]
    assert zero["stage3_allgather_sequential"] is not ordered
