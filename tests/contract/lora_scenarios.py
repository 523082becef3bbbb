"""What the ranks of tests/contract/test_lora_engine.py and test_lora_rollout.py do, and plain peft to compare with."""

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

from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.export import named_weights
from openrlhf_ext.models.spec import LoraSpec, ModelSpec

LORA = LoraSpec(rank=4, alpha=8)


def run(path: Path, device: Device, spec: EngineSpec, folder: Path, **model: Any) -> dict[str, Any]:
    """Three steps with a checkpoint after the second, and the third again from that checkpoint."""
    engine = engine_of(path, device, spec, **{"lora": LORA, **model})
    answer: dict[str, Any] = {"fresh": engine.forward(rows(0)), "reports": [train_step(engine, i) for i in range(2)]}
    engine.save(folder, {"step": 2})
    answer |= last_step(engine)
    answer |= {"off": engine.forward(rows(0), adapters=False), "logp": engine.forward(rows(0))}
    engine.export_adapters(folder / "adapters")
    engine.export(folder / "merged")
    engine = engine_of(path, device, replace(spec, seed=7), **{"lora": LORA, **model})
    answer["client"] = dict(engine.load(folder))
    answer["again"] = last_step(engine)
    return answer


def last_step(engine: Any) -> dict[str, Any]:
    drawn = torch.rand(3)
    return {"drawn": drawn, "last": train_step(engine, STEPS - 1), "weights": full_weights(engine, 9000)}


def base(path: Path, device: Device, spec: EngineSpec, **model: Any) -> Tensor:
    return engine_of(path, device, replace(spec, trainable=False), **model).forward(rows(0))


def two_ranks(rank: int, world_size: int, device: Device, path: Path, folder: Path) -> dict[Any, Any]:
    answer = {}
    for stage in (0, 2, 3):
        spec = replace(SPEC, zero_stage=stage)
        answer[stage] = run(path, device, spec, folder / f"two-{stage}") | {"base": base(path, device, spec)}
    return answer


def one_rank(rank: int, world_size: int, device: Device, path: Path, folder: Path, other: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {"runs": {}}
    variants: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "whole, dropout": ({"zero_stage": 0}, {"lora": replace(LORA, dropout=0.2)}),
        "sharded, bf16": ({"zero_stage": 3, "dtype": "bf16"}, {}),
        "4-bit": ({"zero_stage": 0}, {"load_in_4bit": True}),
        "4-bit, stage 2": ({"zero_stage": 2}, {"load_in_4bit": True}),
        "4-bit, bf16": ({"zero_stage": 2, "dtype": "bf16"}, {"load_in_4bit": True}),
    }
    for name, (fields, model) in variants.items():
        spec = replace(SPEC, **fields)
        quantised = {"load_in_4bit": model.get("load_in_4bit", False)}
        answer["runs"][name] = run(path, device, spec, folder / name, **model) | {
            "base": base(path, device, spec, **quantised)
        }
    answer["refusals"] = {
        name: refusal(model_path, device, folder / "whole, dropout", lora)
        for name, model_path, lora in (
            ("rank", path, replace(LORA, rank=2)),
            ("alpha", path, replace(LORA, alpha=4)),
            ("targets", path, replace(LORA, target_modules=("v_proj", "q_proj"))),
            ("none", path, None),
            ("base", other, LORA),
        )
    }
    answer["masters"] = {stage: trained_elements(path, device, stage) for stage in (1, 2, 3)}
    answer["slept"] = {(stage, four): asleep(path, device, stage, four) for stage, four in SLEEPERS}
    return answer


SLEEPERS = ((0, False), (2, False), (3, False), (0, True), (2, True))


def refusal(path: Path, device: Device, folder: Path, lora: LoraSpec | None) -> str:
    try:
        engine_of(path, device, replace(SPEC, zero_stage=0), lora=lora).load(folder)
    except DataError as error:
        return str(error)
    return "loaded"


def trained_elements(path: Path, device: Device, stage: int) -> tuple[int, int, int]:
    """Elements with a float32 copy, elements with moments, and elements in training."""
    engine = engine_of(path, device, replace(SPEC, zero_stage=stage, dtype="bf16"), lora=LORA)
    train_step(engine, 0)
    optimizer = engine._runner.optimizer
    masters = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    moments = [state["exp_avg"] for state in optimizer.optimizer.state.values()]
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    assert {master.dtype for master in masters} == {torch.float32}
    return (
        sum(t.numel() for t in masters),
        sum(t.numel() for t in moments),
        sum(getattr(p, "ds_numel", p.numel()) for p in trained),
    )


def asleep(path: Path, device: Device, stage: int, load_in_4bit: bool) -> tuple[bool, list[str]]:
    """Whether a sleep changed nothing, and the weights whose storage was the same after it as before."""
    sleeper = replace(device, capabilities=device.capabilities | {"sleep"})
    engine = engine_of(path, sleeper, replace(SPEC, zero_stage=stage), lora=LORA, load_in_4bit=load_in_4bit)
    train_step(engine, 0)
    before = engine.forward(rows(1))
    held = {name: (t.data_ptr(), t) for name, t in storages(engine)}
    engine.sleep()
    gc.collect()
    stayed = [name for name, (address, tensor) in held.items() if tensor.data_ptr() == address]
    engine.wake()
    same = torch.equal(engine.forward(rows(1)), before)
    train_step(engine, 1)
    return same, stayed


def storages(engine: Any) -> list[tuple[str, Tensor]]:
    found = []
    for name, parameter in engine.model.named_parameters():
        found.append((name, getattr(parameter, "ds_tensor", parameter)))
        if state := getattr(parameter, "quant_state", None):
            found += [(f"{name} scales", state.absmax), (f"{name} scales of scales", state.state2.absmax)]
    return found


def base_weights(path: Path) -> dict[str, Tensor]:
    """What the 4 bits of a base model mean."""
    model = build_model(ModelSpec(str(path), dtype="fp32", load_in_4bit=True))
    return {weight.name: weight.full() for weight in named_weights(model.model)}


def plain_peft_training(path: Path) -> dict[str, Any]:
    """The reference: peft's own model, full logits, one batch per step, torch's AdamW."""
    ours = build_model(ModelSpec(str(path), dtype="fp32", lora=LORA), SPEC.seed)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear")
    model = get_peft_model(plain, config)
    start = {f"base_model.{name}": weight for name, weight in ours.state_dict().items() if "lora_" in name}
    assert set(start) <= set(model.state_dict())
    model.load_state_dict(start, strict=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=SPEC.betas, eps=SPEC.eps, weight_decay=SPEC.weight_decay)
    losses = []
    for index, lr in enumerate((0.0, 1e-2, 5.5e-3)):
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
