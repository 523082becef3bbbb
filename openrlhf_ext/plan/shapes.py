"""An architecture's numbers from its config.json, wherever one is: a folder, the hub's local cache, or with us.

Keys that a config.json leaves out have the values that transformers 5.15's config classes give them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.plan.types import Lora, ModelShape, VisionTower

_MANY: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
_QWEN: Mapping[str, Any] = {
    **_MANY,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_GEMMA: Mapping[str, Any] = {
    **_MANY,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 4096,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "llama": {
        **_MANY,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
    },
    "mistral": {
        **_MANY,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "gemma2": {
        **_GEMMA,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {
        **_GEMMA,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "sliding_window_pattern": 6,
    },
}
_SIGLIP: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
}


def read_shape(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a config.json describes. Raises ConfigError for an architecture that is not known."""
    model_type = str(config.get("model_type") or "nameless")
    if model_type == "gemma3":
        return _multimodal(config, name)
    if model_type not in _DEFAULTS:
        known = ", ".join(sorted({*_DEFAULTS, "gemma3"}))
        raise ConfigError(
            f"{name} is a {model_type} model, whose memory cannot be planned: the architectures known are {known}."
        )
    given = {**_DEFAULTS[model_type], **config}
    gemma = model_type.startswith("gemma")
    heads, hidden = _count(given, "num_attention_heads", name), _count(given, "hidden_size", name)
    biased = bool(given["attention_bias"]) and model_type != "mistral"
    return ModelShape(
        name=name,
        model_type=model_type,
        hidden=hidden,
        layers=_count(given, "num_hidden_layers", name),
        heads=heads,
        kv_heads=heads if given["num_key_value_heads"] is None else _count(given, "num_key_value_heads", name),
        head_dim=hidden // heads if given["head_dim"] is None else _count(given, "head_dim", name),
        ffn=_count(given, "intermediate_size", name),
        vocab=_count(given, "vocab_size", name),
        positions=_count(given, "max_position_embeddings", name),
        tied=bool(given["tie_word_embeddings"]),
        activation=str(given["hidden_activation" if gemma else "hidden_act"]),
        qkv_bias=biased or model_type == "qwen2",
        out_bias=biased and model_type != "qwen2",
        mlp_bias=model_type == "llama" and bool(given["mlp_bias"]),
        qk_norm=model_type in ("qwen3", "gemma3_text"),
        norms_per_layer=4 if gemma else 2,
        windows=_windows(model_type, given, name),
        logit_softcap=given.get("final_logit_softcapping") if gemma else None,
        attention_softcap=given.get("attn_logit_softcapping") if gemma else None,
    )


def find_shape(name_or_path: str) -> ModelShape:
    """The shape of a model (or of an adapter's base), without the network.

    Looked for in a folder of that name, in the hub's local cache and among the models shipped with us (in any case,
    with or without their owner). Raises ConfigError for a name that is nowhere, DataError for a broken folder.
    """
    return _found(name_or_path, adapters=())


def text_shape(name_or_path: str) -> ModelShape:
    """The same for a model that is trained or asked for log-probs here: of several towers the text's alone."""
    return replace(find_shape(name_or_path), tower=None, other_parameters=0)


def adapters_of(name_or_path: str) -> Lora | None:
    """What the adapters in a folder of peft's are; None where it is no such folder."""
    file = Path(name_or_path).expanduser() / "adapter_config.json"
    if not file.is_file():
        return None
    stored = _json(file)
    targets = stored.get("target_modules") or ("all-linear",)
    return Lora(
        int(stored.get("r", 8)),
        int(stored.get("lora_alpha", 8)),
        (targets,) if isinstance(targets, str) else tuple(targets),
        float(stored.get("lora_dropout", 0.0)),
    )


def _found(name_or_path: str, adapters: tuple[str, ...]) -> ModelShape:
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return read_shape(_json(folder / "config.json"), name_or_path)
        if (folder / "adapter_config.json").is_file():
            base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
            if not isinstance(base, str) or not base or name_or_path in adapters:
                raise DataError(
                    f"{folder / 'adapter_config.json'} names no base model (base_model_name_or_path): add its folder "
                    "or hub name."
                )
            return _found(base, (*adapters, name_or_path))
        raise DataError(f"{name_or_path} has no config.json: give the folder of a Hugging Face model.")
    cached = _cached_config(name_or_path)
    if cached is not None:
        return read_shape(_json(cached), name_or_path)
    shipped = _shipped()
    config = shipped.get(name_or_path.lower())
    if config is not None:
        return replace(read_shape(config, name_or_path), name=name_or_path)
    raise ConfigError(_unknown(name_or_path, list(shipped)))


def shipped_models() -> list[dict[str, Any]]:
    """The models whose shapes we ship: `names`, the `parameters` that their owners state, and their `config`."""
    models: list[dict[str, Any]] = _json(Path(__file__).with_name("shipped_models.json"))["models"]
    return models


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    configs = {}
    for model in shipped_models():
        for name in model["names"]:
            configs[name.lower()] = model["config"]
            configs[name.lower().rpartition("/")[2]] = model["config"]
    return configs


def _unknown(name: str, shipped: list[str]) -> str:
    if name.startswith(("/", ".", "~")):
        return f"{name} does not exist: give the folder that holds the model's config.json, or a hub name."
    owned = sorted(known for known in shipped if "/" in known)
    short = {known.rpartition("/")[2]: known for known in owned}
    near = [short[match] for match in get_close_matches(name.lower().rpartition("/")[2], list(short), n=3, cutoff=0.5)]
    hint = f" (shipped names near to it: {', '.join(near)})" if near else ""
    return (
        f"The shape of {name} is not known here, neither as a folder nor from the hub's local cache{hint}: give the "
        "path of a folder with its config.json."
    )


def _cached_config(name: str) -> Path | None:
    """Where huggingface_hub has put the config.json of a model's main branch."""
    cache_folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    repository = Path(cache_folder or Path(home) / "hub").expanduser() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    config = repository / "snapshots" / reference.read_text(encoding="utf-8").strip() / "config.json"
    return config if config.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy or download it again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object: copy or download it again.")
    return value


def _count(given: Mapping[str, Any], key: str, name: str) -> int:
    value = given[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"The config.json of {name} has {key} {value!r}: give a positive whole number.")
    return value


def _windows(model_type: str, given: Mapping[str, Any], name: str) -> tuple[int | None, ...]:
    """By layer: the list of layer types where the config has one, else each architecture's own rule."""
    layers = _count(given, "num_hidden_layers", name)
    window: int | None = given["sliding_window"]
    if model_type.startswith("qwen") and not given["use_sliding_window"]:
        window = None
    if window is None or model_type == "llama":
        return (None,) * layers
    if model_type == "mistral":
        return (window,) * layers
    types = given.get("layer_types")
    if types is not None:
        if len(types) != layers:
            raise ConfigError(f"The config.json of {name} has {len(types)} layer_types for {layers} layers.")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if model_type.startswith("qwen"):
        first = int(given["max_window_layers"])
        return tuple(window if layer >= first else None for layer in range(layers))
    pattern = 2 if model_type == "gemma2" else int(given["sliding_window_pattern"])
    return tuple(window if (layer + 1) % pattern else None for layer in range(layers))


def _multimodal(config: Mapping[str, Any], name: str) -> ModelShape:
    """Gemma 3 with its SigLIP tower: what transformers' causal LM class for it holds."""
    text = {**(config.get("text_config") or {}), "model_type": "gemma3_text"}
    vision = {**_SIGLIP, **(config.get("vision_config") or {})}
    if vision.get("vision_use_head", True):
        raise ConfigError(
            f"The config.json of {name} has a vision tower with a pooling head (vision_use_head), which is not known: "
            "give a text-only model, or set it to false as Gemma 3 does."
        )
    hidden, ffn, layers, heads, image, patch, channels = (_count(vision, key, name) for key in _SIGLIP)
    tower = VisionTower(hidden, ffn, layers, heads, image, patch, channels)
    shape = read_shape(text, name)
    tied = bool(config.get("tie_word_embeddings", True))
    return replace(
        shape, model_type="gemma3", tied=tied, tower=tower, other_parameters=_tower_size(tower, shape.hidden)
    )


def _tower_size(tower: VisionTower, text_hidden: int) -> int:
    v, f = tower.hidden, tower.ffn
    embeddings = v * tower.channels * tower.patch**2 + v + (tower.image // tower.patch) ** 2 * v
    block = 4 * v + 4 * (v * v + v) + 2 * v * f + f + v
    return embeddings + tower.layers * block + 2 * v + v * text_hidden + v
