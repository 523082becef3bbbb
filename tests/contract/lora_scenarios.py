"""What the ranks of tests/contract/test_lora_engine.py do, and plain peft to compare them with."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from engine_scenarios import SPEC, STEPS, denominators, engine_of, full_weights, plain_logprobs, rows, train_step
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from openrlhf_ext.batch.types import MicroBatch
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.export import named_weights
from openrlhf_ext.models.spec import LoraSpec, ModelSpec

LORA = LoraSpec(rank=4, alpha=8)
NF4, INT8 = {"load_in_4bit": True}, {"load_in_8bit": True}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stage 0": ({"zero_stage": 0}, {}),
    "stage 2": ({"zero_stage": 2}, {}),
    "stage 3": ({"zero_stage": 3}, {}),
    "stage 3, bf16": ({"zero_stage": 3, "dtype": "bf16"}, {"lora": replace(LORA, dropout=0.2)}),
    "stage 0, 4-bit": ({"zero_stage": 0}, NF4),
    "stage 2, 4-bit": ({"zero_stage": 2}, NF4),
    "stage 2, 4-bit, bf16": ({"zero_stage": 2, "dtype": "bf16"}, NF4),
    "stage 0, 8-bit": ({"zero_stage": 0}, INT8),
    "stage 2, 8-bit": ({"zero_stage": 2}, INT8),
    "stage 2, 8-bit, bf16": ({"zero_stage": 2, "dtype": "bf16"}, INT8),
}
SLEEPERS = ("stage 0", "stage 2", "stage 3", "stage 0, 4-bit", "stage 2, 4-bit", "stage 2, 8-bit")


def spec_of(name: str) -> tuple[EngineSpec, dict[str, Any]]:
    fields, model = RUNS[name]
    return replace(SPEC, **fields), {"lora": LORA, **model}


def every_run(rank: int, world_size: int, device: Device, path: Path, other: Path, folder: Path) -> dict[str, Any]:
    return {
        "runs": {name: run(path, device, name, folder / name) for name in RUNS},
        "refusals": refusals(path, other, device, folder / "stage 0"),
        "masters": {stage: float32_copies(path, device, stage) for stage in (1, 2, 3)},
        "slept": {name: asleep(path, device, name) for name in SLEEPERS},
    }


def run(path: Path, device: Device, name: str, folder: Path) -> dict[str, Any]:
    """Three steps with a checkpoint after the second, and the third again from that checkpoint, where nothing else
    (a publish, a forward without adapters) came between."""
    spec, model = spec_of(name)
    engine = engine_of(path, device, spec, **model)
    answer: dict[str, Any] = {"fresh": engine.forward(rows(0)), "reports": [train_step(engine, i) for i in range(2)]}
    engine.save(folder, {"step": 2})
    answer |= {"published": [published(engine)], "off": engine.forward(rows(0), adapters=False)}
    answer |= last_step(engine)
    answer["published"].append(published(engine))
    answer["logp"] = engine.forward(rows(0))
    engine.export_adapters(folder / "adapters")
    engine.export(folder / "merged")
    engine = engine_of(path, device, replace(spec, seed=7), **model)
    answer["client"] = dict(engine.load(folder))
    answer["again"] = last_step(engine)
    frozen = engine_of(path, device, replace(spec, trainable=False), **{**model, "lora": None})
    return answer | {"base": frozen.forward(rows(0))}


def last_step(engine: Any) -> dict[str, Any]:
    drawn = torch.rand(3)
    return {"drawn": drawn, "last": train_step(engine, STEPS - 1), "weights": full_weights(engine, 9000)}


def given_rows() -> MicroBatch:
    """Rows of which every token after the first is asked for."""
    batch = rows(0)
    position_A = torch.arange(batch.action_BA.shape[1])
    return replace(batch, action_BA=position_A < batch.lengths_B[:, None] - 1)


def published(engine: Any) -> tuple[Tensor, list[list[tuple[str, Tensor]]]]:
    """What the trainer says of `given_rows`, and the buckets that engines are given to say the same."""
    buckets = [[(name, t.to("cpu", copy=True)) for name, t in bucket] for bucket in engine.export_weights(1 << 16)]
    return engine.forward(given_rows()), buckets


def refusals(path: Path, other: Path, device: Device, folder: Path) -> dict[str, str]:
    cases = {
        "rank": (path, replace(LORA, rank=2)),
        "alpha": (path, replace(LORA, alpha=4)),
        "targets": (path, replace(LORA, target_modules=("v_proj", "q_proj"))),
        "none": (path, None),
        "base": (other, LORA),
    }
    answer = {}
    for name, (model, lora) in cases.items():
        try:
            engine_of(model, device, replace(SPEC, zero_stage=0), lora=lora).load(folder)
        except DataError as error:
            answer[name] = str(error)
    return answer


def float32_copies(path: Path, device: Device, stage: int) -> tuple[int, int, int]:
    """Elements on this rank of float32 copies and of moments, and elements in training in all."""
    engine = engine_of(path, device, replace(SPEC, zero_stage=stage, dtype="bf16"), lora=LORA)
    train_step(engine, 0)
    optimizer = engine._runner.optimizer
    copies = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    moments = [state["exp_avg"] for state in optimizer.optimizer.state.values()]
    assert {copy.dtype for copy in copies} == {torch.float32}
    trained = [getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters() if p.requires_grad]
    return sum(t.numel() for t in copies), sum(t.numel() for t in moments), sum(trained)


def asleep(path: Path, device: Device, name: str) -> tuple[bool, list[str]]:
    """Whether a sleep changed nothing, and the weights that were where they had been while it lasted."""
    spec, model = spec_of(name)
    sleeper = replace(device, capabilities=device.capabilities | {"sleep"})
    engine = engine_of(path, sleeper, spec, **model)
    train_step(engine, 0)
    before = engine.forward(rows(1))
    held = [(name, tensor, tensor.data_ptr()) for name, tensor in weight_tensors(engine)]
    engine.sleep()
    gc.collect()
    stayed = [name for name, tensor, address in held if tensor.data_ptr() == address]
    engine.wake()
    same = torch.equal(engine.forward(rows(1)), before)
    train_step(engine, 1)  # the optimizer's state is whole too
    return same, stayed


def weight_tensors(engine: Any) -> list[tuple[str, Tensor]]:
    found = []
    for name, parameter in engine.model.named_parameters():
        found.append((name, getattr(parameter, "ds_tensor", parameter)))
        if state := getattr(parameter, "quant_state", None):
            found += [(f"{name} scales", state.absmax), (f"{name} scales of scales", state.state2.absmax)]
        if (rows := getattr(parameter, "SCB", None)) is not None:
            found.append((f"{name} scales", rows))
    return found


def base_weights(path: Path, bits: dict[str, bool]) -> dict[str, Tensor]:
    """What the 4 or 8 bits of a base model mean."""
    model = build_model(ModelSpec(str(path), dtype="fp32", **bits))
    return {weight.name: weight.full() for weight in named_weights(model.model)}


def plain_peft_training(path: Path) -> dict[str, Any]:
    """The reference: peft's own model, full logits, one batch per step, torch's AdamW; the seed's adapters."""
    ours = build_model(ModelSpec(str(path), dtype="fp32", lora=LORA), SPEC.seed)
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), config)
    start = {f"base_model.{name}": weight for name, weight in ours.state_dict().items() if "lora_" in name}
    assert start and set(start) <= set(model.state_dict())
    model.load_state_dict(start, strict=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=SPEC.betas, eps=SPEC.eps, weight_decay=SPEC.weight_decay)
    losses = []
    for index, lr in enumerate((0.0, 1e-2, 5.5e-3)):  # the schedule of SPEC
        optimizer.param_groups[0]["lr"] = lr
        batch = rows(index)
        logp_BA, entropy_BA = plain_logprobs(model, batch)
        loss = -(batch.columns["advantages"] * logp_BA + 0.01 * entropy_BA).sum() / denominators(batch).tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, SPEC.max_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return {"losses": losses, "logp": plain_logprobs(model, rows(0), 1.0)[0]}
