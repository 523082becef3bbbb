"""A model that also sees: its text tower is loaded, trained and exported as a language model of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.build import build_model, check_spec
from openrlhf_ext.models.export import named_weights, write_model_folder
from openrlhf_ext.models.load import has_vision_tower, load_causal_lm, load_config
from openrlhf_ext.models.lora import adapted_layers, halves
from openrlhf_ext.models.spec import LoraSpec, ModelSpec
from openrlhf_ext.models.tiny import build_tokenizer

# Beyond the window of the sliding layers.
TOKENS_BT = torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """Gemma 3 with its tower, tiny: 64-wide, because bitsandbytes quantises 64 numbers at a time."""
    text = {
        "vocab_size": 262, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 8,
        "max_position_embeddings": 256, "sliding_window_pattern": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    tokens = {"image_token_index": 259, "boi_token_index": 260, "eoi_token_index": 261, "eos_token_id": [1, 2]}
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    ).eval()
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=draw)
    folder = tmp_path_factory.mktemp("seeing")
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    with torch.no_grad():
        return folder, model(input_ids=TOKENS_BT).logits


def spec_of(folder, **fields):
    return ModelSpec(str(folder), dtype="fp32", **fields)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS_BT).logits


def copied(folder, target, rename=lambda name: name):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    weights = {rename(name): weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def exported(model, source, folder):
    weights = [(weight.name, weight.full()) for weight in named_weights(model)]
    write_model_folder(model, str(source), folder, [weights], shards=1)
    return folder


def test_the_text_tower_is_the_model(seeing):
    folder, expected_BTV = seeing
    assert has_vision_tower(str(folder))
    config = load_config(str(folder))
    assert isinstance(config, Gemma3TextConfig)
    assert config.eos_token_id == [1, 2]  # of the whole model
    model = load_causal_lm(spec_of(folder))
    assert_close(logits_of(model), expected_BTV, rtol=0, atol=1e-5)
    assert not any("vision" in name or "multi_modal" in name for name, _ in model.named_parameters())


def test_names_since_the_towers_are_siblings(seeing, tmp_path):
    folder, expected_BTV = seeing
    renamed = copied(folder, tmp_path, lambda name: re.sub(r"^language_model\.model", "model.language_model", name))
    assert "model.language_model.norm.weight" in load_file(renamed / "model.safetensors")
    assert_close(logits_of(load_causal_lm(spec_of(renamed))), expected_BTV, rtol=0, atol=1e-5)


def test_a_head_of_its_own(seeing, tmp_path):
    folder, expected_BTV = seeing
    copied(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.lm_head.weight"] = 2 * weights["language_model.model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_close(logits_of(load_causal_lm(spec_of(tmp_path))), 2 * expected_BTV, rtol=0, atol=1e-5)


def test_a_weight_of_the_tower_that_is_missing_is_not_drawn(seeing, tmp_path):
    folder, _ = seeing
    copied(folder, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of its weights \(model\.norm\.weight"):
        load_causal_lm(spec_of(tmp_path))


def test_the_export_is_a_language_model_alone(seeing, tmp_path, capfd):
    folder, expected_BTV = seeing
    model = load_causal_lm(spec_of(folder))
    assert "REPORT" not in capfd.readouterr().err  # the weights that are left out are no news
    target = exported(model, folder, tmp_path / "model")
    config = json.loads((target / "config.json").read_text())
    assert config["model_type"] == "gemma3_text"
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert not has_vision_tower(str(target))
    again, loading = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_close(logits_of(again), expected_BTV, rtol=0, atol=1e-5)
    assert_close(logits_of(load_causal_lm(spec_of(target))), expected_BTV, rtol=0, atol=1e-5)


def test_its_pieces_have_adapters_and_the_tower_s_have_not(seeing, tmp_path):
    folder, expected_BTV = seeing
    spec = spec_of(folder, lora=LoraSpec(4, 8, ("q_proj", "down_proj")))
    check_spec(spec)
    model = build_model(spec)
    assert len(adapted_layers(model.model)) == 6  # two in each of three layers
    for layer in adapted_layers(model.model):
        halves(layer)[1].data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    trained = logits_of(model.model)
    assert (trained - expected_BTV).abs().max() > 1e-3
    target = exported(model.model, folder, tmp_path / "model")
    assert_close(logits_of(AutoModelForCausalLM.from_pretrained(target)), trained, rtol=0, atol=1e-4)


def test_in_4_bits_it_is_trained_too(seeing):
    pytest.importorskip("bitsandbytes")
    folder, _ = seeing
    model = build_model(spec_of(folder, lora=LoraSpec(4), load_in_4bit=True)).train()
    action_BA = torch.ones(2, 23, dtype=torch.bool)
    model(TOKENS_BT, torch.tensor([24, 24]), action_BA)[0].sum().backward()
    for layer in adapted_layers(model.model):
        assert type(layer.get_base_layer()).__name__ == "Linear4bit"
        assert halves(layer)[1].grad.abs().sum() > 0


def test_it_becomes_a_reward_model(seeing, tmp_path):
    folder, _ = seeing
    spec = spec_of(folder, kind="reward", new_head=True)
    check_spec(spec)
    model = build_model(spec, seed=3).eval()
    lengths_B = torch.tensor([24, 20])
    with torch.no_grad():
        scores_B1 = model(TOKENS_BT, lengths_B, torch.zeros(2, 23, dtype=torch.bool))[0]
    target = exported(model.model, folder, tmp_path / "model")
    assert json.loads((target / "config.json").read_text())["architectures"] == ["Gemma3TextForSequenceClassification"]
    again = AutoModelForSequenceClassification.from_pretrained(target).eval()
    mask_BT = torch.arange(24) < lengths_B[:, None]
    with torch.no_grad():
        read_B1 = again(input_ids=TOKENS_BT.where(mask_BT, 0), attention_mask=mask_BT.long()).logits
    assert_close(read_B1, scores_B1, rtol=0, atol=1e-5)
    check_spec(replace(spec, path=str(target), new_head=False))


def test_engines_would_load_more_than_is_trained(seeing, tmp_path):
    folder, _ = seeing
    with pytest.raises(DataError, match="vision-language model, which the engines would load whole"):
        check_spec(spec_of(folder, served=True))
    target = exported(load_causal_lm(spec_of(folder)), folder, tmp_path / "model")
    check_spec(spec_of(target, served=True))


def test_a_tower_that_is_not_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(DataError, match=r"\(llava\) whose text tower cannot be loaded alone: give a text-only"):
        load_config(str(tmp_path))
