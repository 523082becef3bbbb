"""A config.json is read as transformers reads it, wherever it is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.plan.shapes import find_shape, read_shape, shipped_models
from openrlhf_ext.plan.types import ModelShape

TEXT_TYPES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text")

VARIATIONS = [
    {},
    {"num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64},
    {"num_hidden_layers": 7, "sliding_window": None},
    {"num_hidden_layers": 3, "sliding_window": 128, "use_sliding_window": True, "max_window_layers": 1},
    {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": True},
    {"tie_word_embeddings": False, "max_position_embeddings": 77, "vocab_size": 99},
    {"num_key_value_heads": None, "num_hidden_layers": 2},
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def as_transformers_reads(config: dict) -> dict[str, object]:
    """The same facts from the attributes that transformers' own config class fills in."""
    read = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    top, read = read, read.get_text_config()
    heads = read.num_attention_heads
    facts: dict[str, object] = {
        "hidden": read.hidden_size,
        "layers": read.num_hidden_layers,
        "heads": heads,
        "kv_heads": heads if read.num_key_value_heads is None else read.num_key_value_heads,
        "head_dim": getattr(read, "head_dim", read.hidden_size // heads),
        "ffn": read.intermediate_size,
        "vocab": read.vocab_size,
        "positions": read.max_position_embeddings,
        "tied": top.tie_word_embeddings,
        "activation": getattr(read, "hidden_activation", None) or read.hidden_act,
        "logit_softcap": getattr(read, "final_logit_softcapping", None),
        "attention_softcap": getattr(read, "attn_logit_softcapping", None),
    }
    types = getattr(read, "layer_types", None)
    if read.model_type == "llama":  # its modelling code knows no window, whatever the config says
        facts["windows"] = (None,) * read.num_hidden_layers
    elif types is not None:
        facts["windows"] = tuple(read.sliding_window if kind == "sliding_attention" else None for kind in types)
    else:
        facts["windows"] = (getattr(read, "sliding_window", None),) * read.num_hidden_layers
    return facts


def facts_of(shape: ModelShape, names: dict[str, object]) -> dict[str, object]:
    return {name: getattr(shape, name) for name in names}


@pytest.mark.parametrize("variation", range(len(VARIATIONS)))
@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_missing_keys_have_the_values_transformers_gives_them(model_type: str, variation: int):
    config = {"model_type": model_type, **VARIATIONS[variation]}
    if model_type in ("mistral", "gemma2", "gemma3_text") and config.get("num_key_value_heads", 0) is None:
        del config["num_key_value_heads"]  # these classes take no None there
    if model_type == "mistral":
        config.pop("layer_types", None)
    expected = as_transformers_reads(config)
    assert facts_of(read_shape(config, "m"), expected) == expected


@pytest.mark.parametrize("model", shipped_models(), ids=lambda model: model["names"][0])
def test_a_shipped_model_is_read_as_transformers_reads_it(model: dict):
    expected = as_transformers_reads(model["config"])
    for name in model["names"]:
        shape = find_shape(name)
        assert facts_of(shape, expected) == expected
        assert shape.name == name


def test_a_multimodal_config_without_its_own_numbers():
    config = {"model_type": "gemma3", "text_config": {}, "vision_config": {"vision_use_head": False}}
    expected = as_transformers_reads(config)
    shape = read_shape(config, "m")
    assert facts_of(shape, expected) == expected
    assert shape.tower is not None and shape.other_parameters > 0


def test_gemma3_sees_everything_in_every_sixth_layer():
    windows = find_shape("google/medgemma-27b-text-it").windows
    assert len(windows) == 62
    assert [layer for layer, window in enumerate(windows) if window is None] == list(range(5, 62, 6))
    assert set(windows) == {1024, None}


@pytest.mark.parametrize("name", ["qwen/qwen3-4b", "Qwen3-4B", "QWEN3-4b"])
def test_a_shipped_name_in_any_case_with_or_without_its_owner(name: str):
    shape = find_shape(name)
    assert (shape.name, shape.hidden, shape.layers, shape.ffn) == (name, 2560, 36, 9728)


def test_no_two_shipped_models_share_a_name():
    names = [name.lower() for model in shipped_models() for name in model["names"]]
    assert len(names) == len(set(names)) == len({name.rpartition("/")[2] for name in names})


def write(folder: Path, config: dict, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config))
    return folder


def test_a_folder(tmp_path: Path):
    shape = find_shape(str(write(tmp_path / "m", {"model_type": "llama", "num_hidden_layers": 3})))
    assert (shape.layers, shape.vocab) == (3, 32000)


def test_an_adapter_folder_leads_to_its_base(tmp_path: Path):
    adapter = write(tmp_path / "a", {"base_model_name_or_path": "Qwen/Qwen3-0.6B"}, "adapter_config.json")
    assert find_shape(str(adapter)).hidden == 1024


def test_an_adapter_of_itself_is_no_endless_search(tmp_path: Path):
    adapter = write(tmp_path / "a", {"base_model_name_or_path": str(tmp_path / "a")}, "adapter_config.json")
    with pytest.raises(DataError, match="names no base model"):
        find_shape(str(adapter))


def test_the_hub_cache_before_what_we_ship(empty_cache: Path):
    repository = empty_cache / "models--Qwen--Qwen3-4B"
    write(repository / "snapshots" / "abc", {"model_type": "qwen3", "num_hidden_layers": 5})
    assert find_shape("Qwen/Qwen3-4B").layers == 36, "a snapshot that no branch names is not the model"
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find_shape("Qwen/Qwen3-4B").layers == 5


def test_the_hub_cache_is_where_huggingface_hub_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    repository = tmp_path / "other" / "models--someone--small"
    write(repository / "snapshots" / "abc", {"model_type": "qwen2", "num_hidden_layers": 5})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    assert find_shape("someone/small").layers == 5


def test_an_unknown_name_says_which_are_near_and_what_to_do():
    with pytest.raises(ConfigError, match=r"Qwen/Qwen3-7B .*qwen/qwen3-.*path of a folder with its config.json"):
        find_shape("Qwen/Qwen3-7B")


def test_a_path_that_is_not_there_is_no_name():
    with pytest.raises(ConfigError, match="/nowhere/model does not exist"):
        find_shape("/nowhere/model")


def test_another_architecture_is_named_with_those_known():
    with pytest.raises(ConfigError, match=r"mamba .*gemma2, gemma3, gemma3_text, llama, mistral, qwen2, qwen3"):
        read_shape({"model_type": "mamba"}, "m")


@pytest.mark.parametrize("value", [0, -1, "64", 1.5, True])
def test_a_number_that_is_none_is_named(value: object):
    with pytest.raises(ConfigError, match=r"of m has hidden_size"):
        read_shape({"model_type": "llama", "hidden_size": value}, "m")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_torn_config_is_the_users_to_mend(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json"):
        find_shape(str(tmp_path))


def test_a_folder_without_a_config(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no config\.json"):
        find_shape(os.fspath(tmp_path))
