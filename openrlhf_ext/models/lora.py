"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on a frozen model, by peft's layers.

A layer computes W x + scale * B A x, with A (rank, in) and B (out, rank) in training and W frozen; the merged
weight is W + scale * B A. The layers stand in the Hugging Face model itself, without peft's wrapper around it:
a model with adapters is called like one without.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.fresh import Writable
from openrlhf_ext.models.spec import LoraSpec
from openrlhf_ext.models.value_model import HEAD

ALL_LINEAR = "all-linear"
ADAPTER = "default"  # peft's name for the adapter of a layer that is trained
START = "start"  # and for a frozen copy of the one that training went on from


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


def continue_adapters(model: PreTrainedModel, folder: Path, writable: Writable = lambda _: nullcontext()) -> None:
    """Fill the adapters of a model from a folder of peft's, and keep a frozen copy of them beside.

    `adapters_off` then gives the model as training found it: with that copy, not without adapters. A reward model's
    head is filled too, where the folder has one. Raises DataError where the folder's tensors are not those of the
    model.
    """
    stored = _stored_adapters(folder)
    if hasattr(model, HEAD) and (head := stored.pop(f"{HEAD}.weight", None)) is not None:
        _fill_head(model.get_parameter(f"{HEAD}.weight"), head, folder, writable)
    frozen = copy.copy(adapter_config(model))
    frozen.lora_dropout = 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two of them are meant
        inject_adapter_in_model(frozen, model, adapter_name=START)
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        layer._active_adapter = [ADAPTER]  # set_adapter would also decide what is trained
        for part, half in zip(("lora_A", "lora_B"), halves(layer), strict=True):
            tensor = stored.pop(f"{name}.{part}.weight", None)
            if tensor is None or tensor.shape != half.shape:
                raise DataError(f"{folder} has no {part} of that shape for {name}: it belongs to another model.")
            start = cast(nn.Parameter, getattr(layer, part)[START].weight)
            for parameter, trained in ((half, True), (start, False)):
                parameter.data = tensor.to(half.device, model.dtype, copy=True)
                parameter.requires_grad_(trained)
    if stored:
        raise DataError(f"{folder} adapts {next(iter(stored))}, which the model does not have or does not adapt.")


def _fill_head(head: nn.Parameter, found: Tensor, folder: Path, writable: Writable) -> None:
    with writable([head]), torch.no_grad():
        if found.shape != head.shape:
            raise DataError(
                f"{folder} has a head of {len(found)} numbers where {len(head)} are to be trained: "
                f"give --model.head_dim {len(found)}."
            )
        head.copy_(found)


def read_adapter_folder(folder: Path, *, head: bool = False) -> tuple[str, LoraSpec]:
    """The base model and the shape of the adapters in a folder of peft's, without their weights.

    Raises DataError for a folder that cannot be read, or adapters of a kind that is not trained here: those of a
    reward model too, which have its head beside them, unless `head` says that it is wanted.
    """
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder} cannot be read as a folder of LoRA adapters ({error}).") from error
    if has_head := config.modules_to_save == [HEAD]:
        config.modules_to_save = None
    if has_head and not head:
        raise DataError(
            f"The adapters in {folder} are a reward model's, with its head: only rm goes on from them; "
            "give the adapters of a language model, or a whole one."
        )
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"):
        if getattr(config, name, None):
            raise DataError(
                f"The adapters in {folder} have {name}, which is not supported: merge them into their base."
            )
    if config.bias != "none" or isinstance(config.target_modules, str) or not config.target_modules:
        raise DataError(f"The adapters in {folder} are not on a list of linear modules: merge them into their base.")
    base = config.base_model_name_or_path
    if not base:
        raise DataError(f"{folder}/adapter_config.json names no base_model_name_or_path: add it.")
    return base, LoraSpec(config.r, config.lora_alpha, tuple(sorted(config.target_modules)), config.lora_dropout)


def _stored_adapters(folder: Path) -> dict[str, Tensor]:
    file = folder / "adapter_model.safetensors"
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read ({error}): give a folder of adapters in safetensors.") from error
    return {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}


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
    """Whether a parameter of that name is A or B of a layer, in training."""
    return f".{ADAPTER}." in name


def is_of_adapters(name: str) -> bool:
    """Whether it is such a one or its frozen copy, and so no weight of the model itself."""
    return is_adapter(name) or f".{START}." in name


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While it lasts the model computes as training found it: with its base weights alone, or with the adapters
    that training went on from."""
    layers = adapted_layers(model)
    assert layers, "there are no adapters to leave out"
    for layer in layers:
        # Not by peft's own switches, which also decide which weights ask for a gradient.
        if START in layer.lora_A:
            layer._active_adapter = [START]
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter, layer._disable_adapters = [ADAPTER], False


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
