"""Critic and reward model: the right token's number, whatever the batch looks like, and files that others read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    Qwen3Config,
)

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import LoraSpec, ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.models.value_model import RewardModel, ValueModel, load_scalar_model

SIZE = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1,
}  # fmt: skip
CONFIGS = {
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
    "gemma2 sliding": Gemma2Config(**SIZE, head_dim=8, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=1, pad_token_id=0),
}
ROWS = [(2, 5), (4, 1), (3, 9), (1, 0)]
SHAPE = TinyShape(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocab=260, max_positions=64)


def plain(config, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()


def batch(rows=ROWS, seed=0):
    """Rows given as (prompt length, response length)."""
    lengths_B = torch.tensor([p + r for p, r in rows])
    longest = int(lengths_B.max())
    tokens_BT = torch.randint(3, 32, (len(rows), longest), generator=torch.Generator().manual_seed(seed))
    position_T = torch.arange(longest)
    prompts_B = torch.tensor([p for p, _ in rows])
    action_BA = (position_T[1:] >= prompts_B[:, None]) & (position_T[1:] < lengths_B[:, None])
    return tokens_BT, lengths_B, action_BA


def spec(path="", **fields) -> ModelSpec:
    return ModelSpec(str(path), **{"dtype": "fp32", "kind": "value", **fields})


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("causal") / "model", SHAPE)


@pytest.fixture
def scorer(causal, tmp_path):
    """A reward model's folder, as transformers writes one."""
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(causal, num_labels=1)
    model.save_pretrained(tmp_path / "scorer")
    return tmp_path / "scorer"


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_value_is_read_at_the_token_before_its_action(name, packing):
    """One row at a time, cut behind the token: what transformers says of the row up to there."""
    model, (tokens_BT, lengths_B, action_BA) = plain(CONFIGS[name]), batch()
    value_BA = ValueModel(plain(CONFIGS[name]), spec(packing=packing))(tokens_BT, lengths_B, action_BA).value_BA
    for row, action in action_BA.nonzero().tolist():
        with torch.no_grad():
            expected = model(tokens_BT[row : row + 1, : action + 1]).logits[0, 0]
        assert float(value_BA[row, action].detach()) == pytest.approx(float(expected), abs=2e-5)
    assert not value_BA[~action_BA].any() and value_BA[action_BA].all()
    assert value_BA.dtype == torch.float32


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_score_is_that_of_transformers(name, packing):
    tokens_BT, lengths_B, action_BA = batch()
    tokens_BT[torch.arange(tokens_BT.shape[1]) >= lengths_B[:, None]] = 0
    with torch.no_grad():
        mask_BT = (tokens_BT != 0).long()
        expected_B1 = plain(CONFIGS[name])(input_ids=tokens_BT, attention_mask=mask_BT).logits
        model = RewardModel(plain(CONFIGS[name]), spec(kind="reward", packing=packing))
        score_BH = model(tokens_BT, lengths_B, action_BA).score_BH
    torch.testing.assert_close(score_BH, expected_B1, rtol=0, atol=2e-5)


def test_a_score_is_read_at_the_last_token_even_if_that_is_the_pad_token():
    """transformers looks for the pad token's id, and misses an answer that ends by it; lengths do not."""
    tokens_BT = torch.tensor([[5, 6, 7, 0]])
    with torch.no_grad():
        model = plain(CONFIGS["qwen3"])
        expected = model.score(model.model(tokens_BT).last_hidden_state)[0, -1]
        score = RewardModel(model, spec(kind="reward"))(tokens_BT, torch.tensor([4]), torch.zeros(1, 3).bool())[0]
    torch.testing.assert_close(score[0], expected)


def test_values_of_a_half_precision_model_are_told_apart():
    """The head answers in float32: numbers between those that bfloat16 has."""
    model = plain(CONFIGS["qwen3"], torch.bfloat16)
    with torch.no_grad():
        value_BA = ValueModel(model, spec(dtype="bf16"))(*batch()).value_BA
    values = value_BA[value_BA != 0]
    assert (values.bfloat16().float() != values).any()


@pytest.mark.parametrize("packing", [False, True])
def test_a_micro_batch_without_actions_reaches_every_parameter_with_zero(packing):
    model = ValueModel(plain(CONFIGS["qwen3"]), spec(packing=packing)).train()
    tokens_BT, lengths_B, action_BA = batch()
    value_BA = model(tokens_BT, lengths_B, torch.zeros_like(action_BA)).value_BA
    assert not value_BA.any()
    value_BA.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize(
    "fields",
    [{"gradient_checkpointing": True}, {"gradient_checkpointing": True, "reentrant": True}, {"packing": True}],
)
def test_how_the_model_is_run_does_not_change_the_gradient(fields):
    gradients = []
    for kind in ({}, fields):
        model = ValueModel(plain(CONFIGS["qwen3"]), spec(**kind)).train()
        model(*batch()).value_BA.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    largest = float(gradients[0].abs().max())
    assert largest > 0.1
    # float32 has seven digits; how they are rounded depends on the processor's kernels.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=2e-6 * largest)


def test_a_new_head_is_drawn_from_the_seed_alone(causal):
    heads = []
    for seed in (7, 7, 8):
        torch.manual_seed(len(heads))
        heads.append(build_model(spec(causal), seed).model.score.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx(1 / (SHAPE.hidden + 1), rel=0.4)


def test_the_head_of_a_checkpoint_is_kept(scorer):
    stored = load_file(scorer / "model.safetensors")["score.weight"]
    assert torch.equal(build_model(spec(scorer), seed=1).model.score.weight, stored)
    assert torch.equal(build_model(spec(scorer, kind="reward")).model.score.weight, stored)


@pytest.mark.parametrize("told_by", ["config", "spec"])
def test_a_head_of_another_name(scorer, told_by):
    weights = load_file(scorer / "model.safetensors")
    stored = weights["value_head.weight"] = weights.pop("score.weight")
    save_file(weights, scorer / "model.safetensors", metadata={"format": "pt"})
    if told_by == "config":
        edit_config(scorer, value_head_prefix="value_head")
    model = build_model(spec(scorer, kind="reward", value_head="other" if told_by == "config" else "value_head")).model
    assert torch.equal(model.score.weight, stored)
    assert getattr(model.config, "value_head_prefix", "score") == "score", "the name that an export will have"


def test_a_reward_model_without_a_head_is_refused(causal):
    with pytest.raises(DataError, match=r"has no score\.weight, the head of a reward model.*--ds\.value_head_prefix"):
        build_model(spec(causal, kind="reward"))


@pytest.mark.parametrize("kind", ["value", "reward"])
def test_a_head_of_another_size(causal, tmp_path, kind):
    AutoModelForSequenceClassification.from_pretrained(causal, num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"\(score\.weight\) gives 2 numbers where 1 is needed"):
        build_model(spec(tmp_path, kind=kind))
    assert build_model(spec(tmp_path, kind=kind, head_dim=2)).model.score.out_features == 2


def test_other_weights_must_be_there(scorer):
    weights = load_file(scorer / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, scorer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of its weights \(model\.norm\.weight"):
        build_model(spec(scorer), seed=1)


def test_an_architecture_without_such_a_head(tmp_path):
    config = CohereConfig(**{k: v for k, v in SIZE.items() if k != "num_labels"})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is a cohere model"):
        build_model(spec(tmp_path))


def test_scores_are_normalised_where_asked_and_known(scorer):
    tokens = batch()
    with torch.no_grad():
        bare_B1 = build_model(spec(scorer, kind="reward"))(*tokens)[0]
        with pytest.raises(DataError, match="does not know the mean and std of its scores"):
            build_model(spec(scorer, kind="reward", normalize=True))
        edit_config(scorer, mean=0.5, std=0.25)
        asked_B1 = build_model(spec(scorer, kind="reward", normalize=True))(*tokens)[0]
        not_asked_B1 = build_model(spec(scorer, kind="reward"))(*tokens)[0]
        values = [build_model(spec(scorer, normalize=normalize))(*tokens)[0][tokens[2]] for normalize in (False, True)]
    assert torch.equal(bare_B1, not_asked_B1)
    torch.testing.assert_close(asked_B1, (bare_B1 - 0.5) / 0.25)
    torch.testing.assert_close(values[1], (values[0] - 0.5) / 0.25)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), ("much", 1.0), (0.0, float("nan")), ([0.0], [1.0])])
def test_a_scale_that_is_none(scorer, mean, std):
    edit_config(scorer, mean=mean, std=std)
    with pytest.raises(DataError, match="by which no score can be normalised"):
        build_model(spec(scorer, kind="reward", normalize=True))


def test_a_head_is_trained_beside_adapters(causal):
    model = build_model(spec(causal, lora=LoraSpec(rank=2)), seed=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "model.score.weight" in trained
    assert all("lora_" in name for name in trained - {"model.score.weight"}) and len(trained) > 1
    bare = build_model(spec(causal), seed=1)
    with torch.no_grad():
        assert torch.equal(model(*batch()).value_BA, bare(*batch()).value_BA), "new adapters change nothing"


def test_a_new_head_is_not_quantised(causal):
    pytest.importorskip("bitsandbytes")
    four_bits = build_model(spec(causal, load_in_4bit=True, lora=LoraSpec(rank=2)), seed=1)
    assert torch.equal(four_bits.model.score.weight, build_model(spec(causal), seed=1).model.score.weight)


def test_a_pad_token_is_told_but_still_learned(causal, tmp_path):
    """transformers needs its id to score a batch; an embedding that is told of it would not learn that token."""
    for file in causal.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit_config(tmp_path, pad_token_id=None)
    model, _ = load_scalar_model(replace(spec(tmp_path), kind="value"))
    assert model.config.pad_token_id is not None
    assert model.model.embed_tokens.padding_idx is None


def edit_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
