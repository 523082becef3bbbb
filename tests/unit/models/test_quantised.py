from __future__ import annotations

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.export import named_weights
from openrlhf_ext.models.lora import adapted_layers, halves
from openrlhf_ext.models.quantised import scales
from openrlhf_ext.models.spec import LoraSpec, ModelSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = Qwen3Config(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def policy(path, *, load_in_4bit=True, dtype="fp32"):
    spec = ModelSpec(str(path), dtype=dtype, lora=LoraSpec(rank=3, alpha=6), load_in_4bit=load_in_4bit)
    model = build_model(spec, seed=1)
    torch.manual_seed(2)
    for layer in adapted_layers(model):
        torch.nn.init.normal_(halves(layer)[1], std=0.3)
    return model


def batch():
    tokens_BT = torch.randint(3, 32, (2, 9), generator=torch.Generator().manual_seed(0))
    return tokens_BT, torch.tensor([9, 9]), torch.ones(2, 8, dtype=torch.bool)


def evaluate(model):
    with torch.no_grad():
        return model.eval()(*batch()).logp_BA


def gradient(model):
    model.train()(*batch()).logp_BA.sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def whole_copy(path, folder):
    """A plain folder with what the 4 bits of `path` mean."""
    plain = AutoModelForCausalLM.from_pretrained(path)
    base = build_model(ModelSpec(str(path), dtype="fp32", load_in_4bit=True))
    plain.load_state_dict({weight.name: weight.full() for weight in named_weights(base.model)})
    plain.save_pretrained(folder)
    return folder


def test_linear_weights_have_4_bits_and_the_head_and_the_embedding_all(folder):
    model = policy(folder)
    layers = [layer.get_base_layer() for layer in adapted_layers(model)]
    assert len(layers) == 14 and all(isinstance(layer, bitsandbytes.nn.Linear4bit) for layer in layers)
    for layer in layers:
        assert layer.weight.nbytes * 8 == layer.in_features * layer.out_features * 4
        assert layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested
        assert [len(scale) for scale in scales(layer.weight)] == [layer.in_features * layer.out_features // 64, 1]
    assert type(model.model.model.embed_tokens.weight) is type(model.head.weight) is torch.nn.Parameter


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-5), ("bf16", 0.15)])
def test_the_full_weights_are_what_is_computed_with(folder, tmp_path, dtype, limit):
    model = policy(folder, dtype=dtype)
    weights = {weight.name: weight.full() for weight in named_weights(model.model)}
    assert {tensor.dtype for tensor in weights.values()} == {model.model.dtype}
    sizes = {weight.name: weight.nbytes for weight in named_weights(model.model)}
    assert sizes == {name: tensor.nbytes for name, tensor in weights.items()}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=model.model.dtype)
    original = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    plain.load_state_dict(weights)
    tokens_BT = batch()[0]
    with torch.no_grad():
        logp_BAV = plain(tokens_BT).logits[:, :-1].float().log_softmax(-1)
    expected_BA = logp_BAV.gather(2, tokens_BT[:, 1:, None])[..., 0]
    torch.testing.assert_close(evaluate(model), expected_BA, rtol=0, atol=limit)
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[key], original[key])


@pytest.mark.parametrize("evaluated", [False, True])
def test_gradients_pass_through_4_bits_also_after_an_evaluation(folder, tmp_path, monkeypatch, evaluated):
    # As a CPU with AVX512-BF16 has it: the layers would repack themselves at their first evaluation.
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = policy(folder)
    assert not any(layer.get_base_layer().support_avx512bf16_for_cpu for layer in adapted_layers(model))
    if evaluated:
        evaluate(model)
    expected = gradient(policy(whole_copy(folder, tmp_path), load_in_4bit=False))
    got = gradient(model)
    assert torch.cosine_similarity(got, expected, dim=0) > 0.99999
    assert float(got.norm()) == pytest.approx(float(expected.norm()), rel=1e-4)


def test_one_evaluation_would_have_spoiled_them(folder, monkeypatch):
    """The test above can fail: where the layers may repack, they do."""
    repacked = []
    monkeypatch.setattr(
        bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", lambda w, s: repacked.append(w) or (w, s)
    )
    model = policy(folder)
    evaluate(model)
    assert not repacked
    for layer in adapted_layers(model):
        layer.get_base_layer().support_avx512bf16_for_cpu = True
    evaluate(model)
    assert len(repacked) == 14


def test_the_head_of_a_critic_stays_whole_and_learns(folder):
    spec = ModelSpec(str(folder), dtype="fp32", kind="value", lora=LoraSpec(rank=3), load_in_4bit=True)
    model = build_model(spec, seed=1).train()
    assert model.head.weight.dtype == torch.float32 and model.head.weight.requires_grad
    model(*batch()).value_BA.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"model.score.weight"} and model.head.weight.grad.abs().max() > 0
