from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.export import named_weights, write_adapter_folder
from openrlhf_ext.models.lora import (
    adapted_layers,
    adapter_config,
    adapters_off,
    check_targets,
    halves,
    is_adapter,
    read_adapter_folder,
)
from openrlhf_ext.models.spec import LoraSpec, ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    config = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=request.param, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def policy(folder, *, seed=1, dtype="fp32", learned=False, **lora):
    fields = {"rank": 3, "alpha": 12, **lora}
    spec = ModelSpec(str(folder), dtype=dtype, logprob_chunk=3, lora=LoraSpec(**fields))
    model = build_model(spec, seed).eval()
    if learned:
        torch.manual_seed(2)
        for layer in adapted_layers(model):
            torch.nn.init.normal_(halves(layer)[1], std=0.3)
    return model


def batch():
    lengths_B = torch.tensor([7, 4, 9])
    tokens_BT = torch.randint(3, 32, (3, 9), generator=torch.Generator().manual_seed(0))
    position_T = torch.arange(9)
    return tokens_BT, lengths_B, (position_T[1:] >= 2) & (position_T[1:] < lengths_B[:, None])


def logp(model):
    with torch.no_grad():
        return model(*batch(), temperature=0.7).logp_BA


def names_of(folder, targets):
    model = policy(folder, target_modules=targets).model
    return {name.rpartition(".")[2] for name, module in model.named_modules() if module in adapted_layers(model)}


def test_all_linear_leaves_out_the_output_head(folder):
    assert names_of(folder, ("all-linear",)) == set(PROJECTIONS)
    assert names_of(folder, ("q_proj", "layers.1.mlp.up_proj")) == {"q_proj", "up_proj"}


@pytest.mark.parametrize("target", ["qq_proj", "proj", "lm_head", "embed_tokens", "score"])
def test_a_target_that_cannot_have_an_adapter_is_refused_with_those_that_can(folder, target):
    with pytest.raises(DataError, match=rf"^{target} is no linear module .*down_proj, gate_proj, .*all-linear\.$"):
        policy(folder, target_modules=("q_proj", target))
    config = AutoConfig.from_pretrained(folder)
    with pytest.raises(DataError, match=rf"^{target} is no linear module"):
        check_targets(config, LoraSpec(rank=3, target_modules=("q_proj", target)))
    check_targets(config, LoraSpec(rank=3, target_modules=("q_proj",)))


def test_only_adapters_are_trained(folder):
    model = policy(folder)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_adapter(name)}
    assert len(trained) == 2 * 2 * len(PROJECTIONS)


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(folder):
    plain = build_model(ModelSpec(str(folder), dtype="fp32", logprob_chunk=3)).eval()
    torch.manual_seed(11)
    first = policy(folder, seed=1)
    assert torch.equal(logp(first), logp(plain))
    drawn = [halves(layer)[0] for layer in adapted_layers(first)]
    torch.manual_seed(12)
    for seed, same in ((1, True), (2, False)):
        again = [halves(layer)[0] for layer in adapted_layers(policy(folder, seed=seed))]
        assert all(torch.equal(left, right) == same for left, right in zip(drawn, again, strict=True))
    for weight_RI in drawn:  # peft's own range: uniform, with the variance 1 / (3 in) of torch's linear layers
        limit = weight_RI.shape[1] ** -0.5
        assert 0.8 * limit < weight_RI.abs().max() <= limit


def test_adapters_are_of_the_models_type(folder):
    assert {parameter.dtype for parameter in policy(folder, dtype="bf16").parameters()} == {torch.bfloat16}


def test_without_its_adapters_the_model_is_its_base_bit_for_bit(folder):
    model, plain = policy(folder, learned=True), build_model(ModelSpec(str(folder), dtype="fp32", logprob_chunk=3))
    learned = logp(model)
    with adapters_off(model):
        assert torch.equal(logp(model), logp(plain.eval()))
    assert torch.equal(logp(model), learned) and (learned - logp(plain)).abs().max() > 0.1
    assert all(p.requires_grad == is_adapter(name) for name, p in model.named_parameters())


def test_merged_weights_are_those_of_a_model_without_adapters(folder):
    model = policy(folder, learned=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weights = {weight.name: weight.full() for weight in named_weights(model.model)}
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert set(weights) == {name for name, _ in plain.named_parameters()}
    changed = {name for name, weight in plain.named_parameters() if not torch.equal(weight, weights[name])}
    assert changed == {name for name in weights if name.split(".")[-2] in PROJECTIONS}
    plain.load_state_dict(weights, strict=False)
    tokens_BT, _, action_BA = batch()
    with torch.no_grad():
        expected_BA = (plain(tokens_BT).logits[:, :-1] / 0.7).log_softmax(-1).gather(2, tokens_BT[:, 1:, None])[..., 0]
    torch.testing.assert_close(logp(model), expected_BA * action_BA, rtol=0, atol=2e-5)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient_although_the_embedding_is_frozen(folder, reentrant):
    gradients = []
    for fields in ({}, {"gradient_checkpointing": True, "reentrant": reentrant}):
        spec = ModelSpec(str(folder), dtype="fp32", lora=LoraSpec(rank=3), **fields)
        model = build_model(spec, seed=1).train()
        torch.manual_seed(2)
        for layer in adapted_layers(model):
            torch.nn.init.normal_(halves(layer)[1], std=0.3)
        model(*batch(), entropy=True).logp_BA.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    assert (gradients[0] != 0).all()


@pytest.fixture
def written(folder, tmp_path):
    """Adapters that have learned something, in a folder of their own, and what their model says."""
    model = policy(folder, learned=True, target_modules=("q_proj", "up_proj"), dropout=0.1)
    tensors = {name: parameter.detach() for name, parameter in model.model.named_parameters() if is_adapter(name)}
    write_adapter_folder(adapter_config(model.model), str(folder), tmp_path / "adapters", tensors)
    return tmp_path / "adapters", logp(model)


def continued(folder):
    base, lora = read_adapter_folder(folder)
    return build_model(ModelSpec(base, dtype="fp32", logprob_chunk=3, lora=lora, adapters=str(folder)), seed=5).eval()


def test_training_goes_on_from_a_folder_of_adapters(folder, written):
    adapters, expected_BA = written
    base, lora = read_adapter_folder(adapters)
    assert (base, lora) == (str(folder), LoraSpec(3, 12, ("q_proj", "up_proj"), 0.1))
    model = continued(adapters)
    torch.testing.assert_close(logp(model), expected_BA)
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.model.named_parameters() if is_adapter(name)} and len(trained) == 8


def test_what_training_found_is_kept_beside_what_it_learns(folder, written):
    adapters, expected_BA = written
    model = continued(adapters)
    for layer in adapted_layers(model):
        torch.nn.init.normal_(halves(layer)[1], std=0.3, generator=torch.Generator().manual_seed(9))
    assert (logp(model) - expected_BA).abs().max() > 0.1
    with adapters_off(model):
        torch.testing.assert_close(logp(model), expected_BA)
    assert (logp(model) - expected_BA).abs().max() > 0.1
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert {weight.name for weight in named_weights(model.model)} == {name for name, _ in plain.named_parameters()}


def test_a_reward_model_goes_on_with_its_head(tmp_path):
    folder = build_tiny_model(tmp_path / "model", TinyShape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=32))
    lora = LoraSpec(2, 4, ("q_proj",))
    spec = ModelSpec(str(folder), dtype="fp32", kind="reward", new_head=True, lora=lora, head_dim=2)
    model = build_model(spec, seed=1).eval()
    for layer in adapted_layers(model):
        torch.nn.init.normal_(halves(layer)[1], std=0.3, generator=torch.Generator().manual_seed(9))
    tensors = {name: p.detach() for name, p in model.model.named_parameters() if p.requires_grad}
    adapters = tmp_path / "adapters"
    write_adapter_folder(adapter_config(model.model), str(folder), adapters, tensors)

    with pytest.raises(DataError, match="are a reward model's, with its head: only rm goes on from them"):
        read_adapter_folder(adapters)
    assert read_adapter_folder(adapters, head=True) == (str(folder), lora)
    again = build_model(replace(spec, adapters=str(adapters)), seed=2).eval()
    torch.testing.assert_close(again(*batch())[0], model(*batch())[0])
    trained = {name for name, parameter in again.model.named_parameters() if parameter.requires_grad}
    assert trained == set(tensors) and "score.weight" in trained
    with pytest.raises(DataError, match=r"a head of 2 numbers where 1 are to be trained: give --model.head_dim 2"):
        build_model(replace(spec, adapters=str(adapters), head_dim=1))


def test_adapters_of_another_model_are_refused(folder, written, tmp_path):
    adapters, _ = written
    base, lora = read_adapter_folder(adapters)
    for changed, message in (
        (LoraSpec(4, 12, lora.target_modules), "no lora_A of that shape"),
        (LoraSpec(3, 12, ("q_proj",)), "adapts model.layers.0.mlp.up_proj.lora_A"),
    ):
        with pytest.raises(DataError, match=message):
            build_model(ModelSpec(base, dtype="fp32", lora=changed, adapters=str(adapters)))
    (adapters / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        continued(adapters)
    with pytest.raises(DataError, match="cannot be read as a folder of LoRA adapters"):
        read_adapter_folder(tmp_path)
