"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on a frozen model, by peft's layers.

A layer computes W x + scale * B A x, with A (rank, in) and B (out, rank) in training and W frozen; the merged
weight is W + scale * B A. The layers stand in the Hugging Face model itself, without peft's wrapper around it:
a model with adapters is called like one without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.spec import LoraSpec

ALL_LINEAR = "all-linear"
ADAPTER = "default"  # peft's name for the only adapter of a layer


def with_adapters(model: PreTrainedModel, lora: LoraSpec, seed: int, *, head: nn.Module) -> None:
    """Put new adapters into the model and freeze everything else.

    `target_modules` are names of linear modules or ends of them (`q_proj`), or `all-linear` for every one but
    the `head`. A is drawn from `seed` as peft draws it, B is zero: a new adapter changes nothing. Raises
    DataError for a name that no module has.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target_modules, head),
    )
    inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model):
        lora_A, lora_B = halves(layer)
        drawn = nn.init.kaiming_uniform_(torch.empty(lora_A.shape), a=math.sqrt(5), generator=generator)
        # In the type of the model: the optimizer keeps its own float32 copy of what it trains.
        lora_A.data = drawn.to(lora_A.device, model.dtype)
        lora_B.data = lora_B.data.to(model.dtype)


def check_targets(config: PreTrainedConfig, lora: LoraSpec) -> None:
    """Raises DataError for a target that a causal LM of this architecture does not have; no weight is read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _targets(model, lora.target_modules, model.get_output_embeddings())


def adapted_layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def adapter_config(model: PreTrainedModel) -> LoraConfig:
    """What peft needs to know to put the adapters into another copy of the base."""
    return cast(LoraConfig, model.peft_config[ADAPTER])


def halves(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, in) and B (out, rank)."""
    return cast(nn.Parameter, layer.lora_A[ADAPTER].weight), cast(nn.Parameter, layer.lora_B[ADAPTER].weight)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is A or B of a layer."""
    return f".{ADAPTER}." in name


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While it lasts the model computes with its base weights alone."""
    layers = adapted_layers(model)
    assert layers, "there are no adapters to leave out"
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(weight: Tensor, layer: LoraLayer) -> Tensor:
    """W + scale * B A, as a new tensor."""
    lora_A, lora_B = halves(layer)
    return torch.addmm(weight, lora_B.detach(), lora_A.detach(), alpha=layer.scaling[ADAPTER])


def _targets(model: PreTrainedModel, asked: Sequence[str], head: nn.Module) -> list[str]:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if tuple(asked) == (ALL_LINEAR,):
        return linear
    for target in asked:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise DataError(
                f"{target} is no linear module of the model that could have an adapter (its output head cannot): "
                f"name some of {', '.join(known)}, or give {ALL_LINEAR}."
            )
    return list(asked)
