"""Reading a causal language model from a folder or the hub: safetensors only, no code of the model's author."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter
from transformers.utils import logging

from openrlhf_ext.data.hub import HUB_NAME, check_on_hub
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.quantised import prepare, quantisation
from openrlhf_ext.models.spec import ModelSpec, torch_dtype

TEXT_TOWERS = {
    # Names of the multimodal model's files, before and since transformers 4.52, to those of the text model alone.
    "gemma3_text": {
        r"^language_model\.model\.": "model.",
        r"^model\.language_model\.": "model.",
        r"^language_model\.lm_head\.": "lm_head.",
    }
}


def load_config(path: str) -> PreTrainedConfig:
    """The architecture of a model; of one that also sees, that of its text tower, which is all that is loaded of it.

    Raises DataError where there is none that a causal LM can be built from.
    """
    config = _read_config(path)
    return _text_tower(config, path) if _sees(config) else config


def has_vision_tower(path: str) -> bool:
    """Whether the files hold more than is loaded. Raises DataError for a config that cannot be read."""
    return _sees(_read_config(path))


def _sees(config: PreTrainedConfig) -> bool:
    return getattr(config, "vision_config", None) is not None


def _text_tower(config: PreTrainedConfig, path: str) -> PreTrainedConfig:
    text = config.get_text_config()
    if text.model_type not in TEXT_TOWERS:
        raise DataError(
            f"{path} is a vision-language model ({config.model_type}) whose text tower cannot be loaded alone: give a "
            "text-only causal LM."
        )
    for name in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        if (value := getattr(config, name, None)) is not None:  # the whole model goes by its own
            setattr(text, name, value)
    return text


def _read_config(path: str) -> PreTrainedConfig:
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists():
            raise DataError(f"{path} is a file, not a model: give the folder that holds its config.json.")
        if path.startswith(("/", ".", "~")) or not HUB_NAME.fullmatch(path):
            raise DataError(f"{path} does not exist: give a folder with config.json and *.safetensors, or a hub name.")
        check_on_hub(path, "model")
    elif (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise DataError(f"{path} holds adapters without their base: give the folder of a whole model, or merge them.")
    elif not (folder / "config.json").is_file():
        raise DataError(f"{path} has no config.json: give the folder of a Hugging Face model.")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The model {path} cannot be read ({_first_sentence(error)}): check its config.json."
        ) from error


def check_model(path: str) -> PreTrainedConfig:
    """The architecture of a model whose files are there and whole, as far as they tell without being loaded.

    Raises DataError as `load_config` does, and for weights of a folder that are missing, torn or no safetensors.
    """
    config = load_config(path)
    if Path(path).is_dir():
        _check_weights(Path(path))
    return config


def _check_weights(folder: Path) -> None:
    files = {file.name: file for file in sorted(folder.glob("*.safetensors"))}
    if not files:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        found = (
            f"only pickle weights ({others[0]}), which are not loaded because they can run code"
            if others
            else "no weights"
        )
        raise DataError(f"{folder} has {found}: give a model with *.safetensors files.")
    index = folder / "model.safetensors.index.json"
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
    except (ValueError, KeyError, AttributeError):
        raise DataError(f"{index} is not the whole index of a model's weights: copy or download it again.") from None
    if missing := sorted(set(named) - files.keys()):
        raise DataError(f"{folder} lacks {missing[0]}, which its index names: copy or download it again.")
    for name, file in files.items():
        try:
            with safe_open(file, framework="pt"):
                pass  # its header fits its size
        except SafetensorError as error:
            raise DataError(
                f"The weights of {folder} cannot be loaded ({name}: {_first_sentence(error)}): are its files complete?"
            ) from error


def weight_names(path: str) -> set[str] | None:
    """The names of the weights in a folder; None for a model on the hub, which is not there yet."""
    if not Path(path).is_dir():
        return None
    names: set[str] = set()
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names |= set(weights.keys())
    return names


def weight_shape(path: str, name: str) -> tuple[int, ...]:
    """The shape of a weight in a folder, which is there."""
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            if name in weights.keys():  # noqa: SIM118 (it is no mapping)
                return tuple(weights.get_slice(name).get_shape())
    raise AssertionError(f"{path} has no {name}")


def load_causal_lm(spec: ModelSpec) -> PreTrainedModel:
    """The model in `spec.dtype`, every weight from its safetensors files.

    Raises DataError where weights are missing (transformers would draw them at random) or not safetensors.
    """
    return load_weights(AutoModelForCausalLM, spec, check_model(spec.path))[0]


def load_weights(
    architecture: Any,
    spec: ModelSpec,
    config: PreTrainedConfig,
    *,
    optional: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """A model of an auto class of transformers, as `load_causal_lm` says, and which `optional` weights it lacks.

    `renamed` are names of weights in the files, by regular expressions, and those that the model has for them.
    """
    renamed = {**TEXT_TOWERS.get(config.model_type, {}), **(renamed or {})}
    try:
        with _without_report():
            loaded: Any = architecture.from_pretrained(
                spec.path,
                config=config,
                dtype=torch_dtype(spec.dtype),
                attn_implementation=spec.attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **({"quantization_config": few_bits} if (few_bits := quantisation(spec)) else {}),
                **({"key_mapping": renamed} if renamed else {}),
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"The weights of {spec.path} cannot be loaded ({_first_sentence(error)}): are its files complete?"
        ) from error
    model, loading = loaded
    model.config.architectures = [type(model).__name__]  # what an export must say of itself
    prepare(model, spec)
    lacking = set(loading["missing_keys"])
    if missing := sorted(lacking - set(optional)):
        raise DataError(
            f"{spec.path} lacks {len(missing)} of its weights ({missing[0]}, ...): check that its files are complete."
        )
    if any(isinstance(used, WeightConverter) for used in getattr(model, "_weight_conversions", None) or ()):
        raise DataError(
            f"A {config.model_type} model stores other tensors than it computes with, which cannot be published to an "
            "engine: use a dense architecture."
        )
    return model, lacking


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers prints a table of weights that are in the files and not in the model, and the other way round."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".:") if lines else type(error).__name__
