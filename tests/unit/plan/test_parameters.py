"""Counts and shapes against the modules that transformers and peft build, on the meta device."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models import lora as real_lora
from openrlhf_ext.plan.parameters import (
    adapter_parameters,
    parameters,
    total_parameters,
    trainable_parameters,
)
from openrlhf_ext.plan.shapes import find_shape, read_shape, shipped_models
from openrlhf_ext.plan.types import Kind, Lora, ModelRun, ModelShape

SHIPPED = shipped_models()
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS = {"all-linear": ("all-linear",), "seven": SEVEN, "two": ("q_proj", "v_proj"), "one": ("mlp.down_proj",)}

UNUSUAL = {
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_hidden_layers": 2},
    "qwen3 biases": {"model_type": "qwen3", "attention_bias": True, "num_hidden_layers": 2},
    "gemma biases": {"model_type": "gemma2", "attention_bias": True, "num_hidden_layers": 2},
    "mistral": {"model_type": "mistral", "attention_bias": True, "num_hidden_layers": 2},
    "untied gemma": {"model_type": "gemma3_text", "tie_word_embeddings": False, "num_hidden_layers": 2},
}


def built(config: dict, kind: Kind = "causal_lm", head_dim: int = 1) -> PreTrainedModel:
    """The real module without its memory."""
    read = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    read.num_labels = head_dim
    builder = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return builder.from_config(read)


@cache
def shipped_model(index: int) -> PreTrainedModel:
    return built(SHIPPED[index]["config"])


def shapes_of(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def planned(shape: ModelShape, kind: Kind = "causal_lm", head_dim: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    return [(weight.name, weight.shape) for weight in parameters(shape, kind, head_dim)]


def run_of(shape: ModelShape, lora: Lora | None = None, kind: Kind = "causal_lm", trainable: bool = True) -> ModelRun:
    return ModelRun(role="model", shape=shape, kind=kind, trainable=trainable, ranks=1, pool="all", lora=lora)


def adapted(model: PreTrainedModel, targets: tuple[str, ...], rank: int) -> list[tuple[str, tuple[int, ...]]]:
    """The adapters that peft puts where `models.lora` says, in the layers that are different from each other."""
    head = model.get_output_embeddings()
    inject_adapter_in_model(LoraConfig(r=rank, target_modules=real_lora._targets(model, targets, head)), model)
    return [(name, shape) for name, shape in shapes_of(model) if real_lora.is_adapter(name)]


@pytest.mark.parametrize("index", range(len(SHIPPED)), ids=lambda index: SHIPPED[index]["names"][0])
def test_every_weight_of_a_shipped_model(index: int):
    shape = find_shape(SHIPPED[index]["names"][0])
    assert planned(shape) == shapes_of(shipped_model(index))
    assert total_parameters(run_of(shape)) == SHIPPED[index]["parameters"], "what its owner states"
    tower = sum(w.numel for w in parameters(shape) if "vision" in w.name or "multi_modal" in w.name)
    assert tower == shape.other_parameters


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("index", range(len(SHIPPED)), ids=lambda index: SHIPPED[index]["names"][0])
def test_every_adapter_of_a_shipped_model(index: int, targets: str):
    shape = find_shape(SHIPPED[index]["names"][0])
    model = shipped_model(index)
    before = dict(shapes_of(model))
    targeted = [
        name
        for name in real_lora._targets(model, ("all-linear",), model.get_output_embeddings())
        if targets == "all-linear" or any(name.endswith(f".{end}") for end in TARGETS[targets])
    ]
    expected = [
        half
        for name in targeted
        for half in (
            (f"{name}.lora_A.default.weight", (24, before[f"{name}.weight"][1])),
            (f"{name}.lora_B.default.weight", (before[f"{name}.weight"][0], 24)),
        )
    ]
    lora = Lora(rank=24, alpha=24, targets=TARGETS[targets])
    halves = adapter_parameters(shape, lora)
    assert [(half.name, half.shape) for half in halves] == expected
    run = run_of(shape, lora)
    assert trainable_parameters(run) == sum(half.numel for half in halves)
    assert total_parameters(run) == SHIPPED[index]["parameters"] + trainable_parameters(run)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-8B", "gemma-2-2b", "gemma-3-4b-it", "Llama-3.2-1B"])
def test_the_adapters_are_those_that_peft_injects(name: str, targets: str):
    config = next(m["config"] for m in SHIPPED if any(n.endswith(f"/{name}") for n in m["names"]))
    shape = find_shape(name)
    assert [(half.name, half.shape) for half in adapter_parameters(shape, Lora(8, 16, TARGETS[targets]))] == adapted(
        built(config), TARGETS[targets], 8
    )


@pytest.mark.parametrize(("rank", "trainable"), [(128, 908_132_352), (256, 1_816_264_704), (384, 2_724_397_056)])
def test_medgemma_27b_on_the_seven_projections(rank: int, trainable: int):
    # 62 layers x rank x (in + out of each projection):
    widths = (5376 + 4096) + 2 * (5376 + 2048) + (4096 + 5376) + 3 * (5376 + 21504)
    assert 62 * rank * widths == trainable
    run = run_of(find_shape("google/medgemma-27b-text-it"), Lora(rank, 2 * rank, SEVEN))
    assert trainable_parameters(run) == trainable
    assert trainable_parameters(run_of(run.shape, Lora(rank, 2 * rank))) == trainable, "they are all that is linear"


@pytest.mark.parametrize("case", UNUSUAL)
def test_configs_that_no_shipped_model_has(case: str):
    assert planned(read_shape(UNUSUAL[case], "m")) == shapes_of(built(UNUSUAL[case]))


@pytest.mark.parametrize("head_dim", [1, 3])
@pytest.mark.parametrize("name", ["Qwen3-8B", "gemma-2-2b", "Mistral-7B-v0.3", "gemma-3-4b-it"])
def test_a_head_of_numbers_takes_the_place_of_the_vocabularys(name: str, head_dim: int):
    config = next(m["config"] for m in SHIPPED if any(n.endswith(f"/{name}") for n in m["names"]))
    shape = find_shape(name)
    assert planned(shape, "reward", head_dim) == shapes_of(built(config, "reward", head_dim))


def test_a_new_head_is_trained_beside_adapters():
    shape = find_shape("Qwen3-0.6B")
    lora = Lora(8, 16)
    adapters = trainable_parameters(run_of(shape, lora))
    assert trainable_parameters(run_of(shape, lora, "value")) == adapters + shape.hidden
    assert trainable_parameters(run_of(shape, lora, trainable=False)) == 0
    assert trainable_parameters(run_of(shape)) == total_parameters(run_of(shape)) == 596_049_920


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "proj", "query_proj"])
def test_a_target_that_is_none_is_refused_as_the_model_would(target: str):
    shape = find_shape("Qwen3-8B")
    with pytest.raises(ConfigError, match=rf"^{target} is no linear module .*down_proj, gate_proj"):
        adapter_parameters(shape, Lora(8, 16, ("q_proj", target)))
