"""Every weight of a model by name and shape, and the adapters that LoRA puts beside them: the counts are exact.

Names and order are those of transformers' modules (`named_parameters()`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.types import Kind, Lora, ModelRun, ModelShape

WeightKind = Literal["embedding", "head", "linear", "norm", "bias", "value_head", "adapter", "other"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor. `linear` is the matrix of a linear module (out, in); the heads are not among those."""

    name: str
    shape: tuple[int, ...]
    kind: WeightKind

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


@lru_cache(maxsize=64)
def parameters(shape: ModelShape, kind: Kind = "causal_lm", head_dim: int = 1) -> tuple[Weight, ...]:
    """The weights of a model without adapters. `head_dim` numbers come out of a value or reward model's head."""
    return tuple(_weights(shape, kind, head_dim))


@lru_cache(maxsize=64)
def adapter_parameters(shape: ModelShape, lora: Lora, kind: Kind = "causal_lm") -> tuple[Weight, ...]:
    """A (rank, in) and B (out, rank) of every linear module that is a target: its name, or an end of it.

    Raises ConfigError for a target that no linear module has; a model's head is none.
    """
    linear = [weight for weight in parameters(shape, kind) if weight.kind == "linear"]
    if lora.targets != (ALL_LINEAR,):
        for target in lora.targets:
            if not any(_is_target(weight.module, target) for weight in linear):
                known = ", ".join(sorted({weight.module.rpartition(".")[2] for weight in linear}))
                raise ConfigError(
                    f"{target} is no linear module of {shape.name} that could have an adapter: name some of {known}, "
                    f"or give {ALL_LINEAR}."
                )
        linear = [weight for weight in linear if any(_is_target(weight.module, target) for target in lora.targets)]
    return tuple(half for weight in linear for half in _halves(weight, lora.rank))


def total_parameters(run: ModelRun) -> int:
    """All weights of a model, its adapters with them."""
    adapters = () if run.lora is None else adapter_parameters(run.shape, run.lora, run.kind)
    return sum(weight.numel for weight in (*parameters(run.shape, run.kind, run.head_dim), *adapters))


def trainable_weights(run: ModelRun) -> tuple[Weight, ...]:
    """What has a gradient: everything, or the adapters and a new head (`models.build`); nothing of a frozen model."""
    if not run.trainable:
        return ()
    weights = parameters(run.shape, run.kind, run.head_dim)
    if run.lora is None:
        return weights
    heads = tuple(weight for weight in weights if weight.kind == "value_head")
    return (*adapter_parameters(run.shape, run.lora, run.kind), *heads)


def trainable_parameters(run: ModelRun) -> int:
    return sum(weight.numel for weight in trainable_weights(run))


def _is_target(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _halves(weight: Weight, rank: int) -> tuple[Weight, Weight]:
    out, into = weight.shape
    return (
        Weight(f"{weight.module}.lora_A.default.weight", (rank, into), "adapter"),
        Weight(f"{weight.module}.lora_B.default.weight", (out, rank), "adapter"),
    )


def _weights(shape: ModelShape, kind: Kind, head_dim: int) -> Iterator[Weight]:
    text = "model"
    if shape.tower is not None:
        text = "model.language_model"
        yield from _vision(shape)
    yield Weight(f"{text}.embed_tokens.weight", (shape.vocab, shape.hidden), "embedding")
    for layer in range(shape.layers):
        yield from _block(shape, f"{text}.layers.{layer}")
    yield Weight(f"{text}.norm.weight", (shape.hidden,), "norm")
    if kind != "causal_lm":
        yield Weight("score.weight", (head_dim, shape.hidden), "value_head")
    elif not shape.tied:
        yield Weight("lm_head.weight", (shape.vocab, shape.hidden), "head")


def _linear(name: str, into: int, out: int, bias: bool) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (out, into), "linear")
    if bias:
        yield Weight(f"{name}.bias", (out,), "bias")


def _block(shape: ModelShape, name: str) -> Iterator[Weight]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield from _linear(f"{name}.self_attn.q_proj", shape.hidden, queries, shape.qkv_bias)
    yield from _linear(f"{name}.self_attn.k_proj", shape.hidden, keys, shape.qkv_bias)
    yield from _linear(f"{name}.self_attn.v_proj", shape.hidden, keys, shape.qkv_bias)
    yield from _linear(f"{name}.self_attn.o_proj", queries, shape.hidden, shape.out_bias)
    if shape.qk_norm:
        yield Weight(f"{name}.self_attn.q_norm.weight", (shape.head_dim,), "norm")
        yield Weight(f"{name}.self_attn.k_norm.weight", (shape.head_dim,), "norm")
    if shape.gated:
        yield from _linear(f"{name}.mlp.gate_proj", shape.hidden, shape.ffn, shape.mlp_bias)
    yield from _linear(f"{name}.mlp.up_proj", shape.hidden, shape.ffn, shape.mlp_bias)
    yield from _linear(f"{name}.mlp.down_proj", shape.ffn, shape.hidden, shape.mlp_bias)
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for norm in norms[: shape.norms_per_layer]:
        yield Weight(f"{name}.{norm}.weight", (shape.hidden,), "norm")


def _vision(shape: ModelShape) -> Iterator[Weight]:
    """SigLIP (arXiv:2303.15343) and Gemma 3's projection of its patches."""
    tower = shape.tower
    assert tower is not None, "asked for models with a tower only"
    v, name = tower.hidden, "model.vision_tower"
    yield Weight(f"{name}.embeddings.patch_embedding.weight", (v, tower.channels, tower.patch, tower.patch), "other")
    yield Weight(f"{name}.embeddings.patch_embedding.bias", (v,), "bias")
    yield Weight(f"{name}.embeddings.position_embedding.weight", ((tower.image // tower.patch) ** 2, v), "other")
    for layer in range(tower.layers):
        block = f"{name}.encoder.layers.{layer}"
        yield from _layer_norm(f"{block}.layer_norm1", v)
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{block}.self_attn.{part}", v, v, bias=True)
        yield from _layer_norm(f"{block}.layer_norm2", v)
        yield from _linear(f"{block}.mlp.fc1", v, tower.ffn, bias=True)
        yield from _linear(f"{block}.mlp.fc2", tower.ffn, v, bias=True)
    yield from _layer_norm(f"{name}.post_layernorm", v)
    yield Weight("model.multi_modal_projector.mm_input_projection_weight", (v, shape.hidden), "other")
    yield Weight("model.multi_modal_projector.mm_soft_emb_norm.weight", (v,), "norm")


def _layer_norm(name: str, size: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (size,), "norm")
    yield Weight(f"{name}.bias", (size,), "bias")
