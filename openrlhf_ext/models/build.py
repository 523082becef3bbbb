"""The module that an engine trains or asks, from its spec.

peft, which takes seconds to import, is imported where there are adapters only.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.causal_lm import PolicyModel
from openrlhf_ext.models.fresh import Writable
from openrlhf_ext.models.load import check_model, has_vision_tower
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.value_model import RewardModel, ValueModel, check_scalar_model


def check_spec(spec: ModelSpec) -> None:
    """All that the files of a model tell without being loaded; DataError for what could not be built from them."""
    if spec.kind != "causal_lm":
        check_scalar_model(spec)
        return
    config = check_model(spec.path)
    if spec.served and has_vision_tower(spec.path):
        raise DataError(
            f"{spec.path} is a vision-language model, which the engines would load whole while its text tower alone is "
            "trained: give a text-only causal LM, such as openrlhf-ext sft exports from it."
        )
    if spec.lora is not None:
        from openrlhf_ext.models.lora import check_targets

        check_targets(config, spec.lora)


def build_model(
    spec: ModelSpec, seed: int = 0, writable: Writable = lambda _: nullcontext()
) -> PolicyModel | ValueModel | RewardModel:
    """A module with the Hugging Face model as its attribute `model`; it is called with
    (tokens_BT, lengths_B, action_BA, temperature, entropy) and answers with a tuple whose first tensor is its answer.

    Weights that are new are drawn from `seed`, while `writable` makes them whole where they are sharded.
    Raises DataError for a model that cannot be loaded.
    """
    model = _load(spec, seed, writable)
    if spec.lora is not None:
        from openrlhf_ext.models.lora import continue_adapters, with_adapters

        with_adapters(model.model, spec.lora, seed, head=model.head)
        if spec.adapters is not None:
            continue_adapters(model.model, Path(spec.adapters), writable)
        model.head.requires_grad_(spec.kind != "causal_lm")  # a new head is not worth freezing
    return model


def _load(spec: ModelSpec, seed: int, writable: Writable) -> PolicyModel | ValueModel | RewardModel:
    if spec.kind == "causal_lm":
        return PolicyModel.load(spec)
    if spec.kind == "reward":
        return RewardModel.load(spec, seed, writable)
    return ValueModel.load(spec, seed, writable)
