from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.load import check_model, load_causal_lm, load_config
from openrlhf_ext.models.spec import ModelSpec


@pytest.fixture
def folder(tmp_path):
    config = Qwen3Config(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def load(folder, dtype="fp32"):
    return load_causal_lm(ModelSpec(str(folder), dtype=dtype))


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_loads_in_the_type_asked_for(folder, dtype, expected):
    model = load(folder, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, stored.to(expected))


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_config(str(tmp_path / "nothing"))


def test_a_file_is_not_a_model(folder):
    with pytest.raises(DataError, match="is a file"):
        load_config(str(folder / "config.json"))


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"no config\.json"):
        load(folder)


def test_an_unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(DataError, match="cannot be read"):
        load(folder)


def test_not_a_causal_lm(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(DataError, match="cannot be loaded"):
        load(folder)


def test_pickle_weights_are_named_and_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"pickle weights \(pytorch_model\.bin\).*safetensors"):
        load(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights"):
        load(folder)


def test_a_weight_that_is_missing_is_not_drawn_at_random(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of its weights \(model\.norm\.weight"):
        load(folder)


def test_a_torn_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        load(folder)


def test_a_shard_that_is_missing(folder):
    names = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    (folder / "model.safetensors").rename(folder / min(names))
    index = {"weight_map": dict(zip(("model.norm.weight", "lm_head.weight"), sorted(names)))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"lacks model-00002-of-00002\.safetensors, which its index names"):
        check_model(str(folder))


def test_files_are_checked_without_being_loaded(folder):
    assert check_model(str(folder)).hidden_size == 8
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot be loaded \(model\.safetensors: .*complete"):
        check_model(str(folder))


def test_weights_of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(7, 8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="cannot be loaded"):
        load(folder)
