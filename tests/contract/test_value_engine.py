"""A critic under DeepSpeedEngine equals plain torch however it is sharded; a reward model equals transformers."""

from __future__ import annotations

import engine_scenarios
import pytest
import torch
import value_scenarios as scenarios
from engine_scenarios import relative_l2, rows
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from value_scenarios import EXPORTED, VALUE_SPEC, plain_training, plain_values

from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec

WAYS = ["whole", "sharded", "sharded packing"]
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The models, and what the ranks wrote."""
    folder = tmp_path_factory.mktemp("value")
    engine_scenarios.build_model(folder / "model", tied=False)
    torch.manual_seed(9)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    model.save_pretrained(folder / "scorer")
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def world(request, folder):
    """The answers of all ranks, and how many they are."""
    ranks = engine_scenarios.spawn(
        request.param,
        scenarios.critic_and_reward_model,
        folder,
        folder / "model",
        folder / "scorer",
        folder,
    )
    return ranks, request.param


@pytest.fixture(scope="module")
def plain(folder):
    spec = ModelSpec(str(folder / "model"), dtype="fp32", kind="value")
    head = build_model(spec, VALUE_SPEC.seed).model.score.weight.detach()
    return plain_training(folder / "model", head)


@pytest.mark.parametrize("way", WAYS)
def test_values_and_updates_equal_plain_torch(world, plain, way):
    """That they do before the first step says that a new head is drawn alike on every rank and stage."""
    ranks, _ = world
    for rank in ranks:
        torch.testing.assert_close(rank[way]["before"], plain["before"], rtol=0, atol=1e-5)
        torch.testing.assert_close(rank[way]["after"], plain["after"], rtol=0, atol=1e-4)
        for name, tensor in rank[way]["weights"].items():
            assert relative_l2(tensor, plain["weights"][name]) < 1e-5, name
    losses = [sum(parts) for parts in zip(*(rank[way]["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(plain["losses"], rel=1e-5)
    assert float((plain["after"] - plain["before"]).abs().max()) > 0.05


def test_adapters_and_the_head_learn_together(world, plain):
    ranks, _ = world
    for rank in ranks:
        learned = rank["adapters"]
        torch.testing.assert_close(learned["before"], plain["before"], rtol=0, atol=1e-5)
        torch.testing.assert_close(learned["after"], ranks[0]["adapters"]["after"], rtol=0, atol=1e-6)
        assert float((learned["after"] - learned["before"]).abs().max()) > 1e-3


@pytest.mark.parametrize("way", EXPORTED)
def test_an_export_is_the_critic_for_transformers_and_for_us(world, folder, way):
    ranks, world_size = world
    exported, values_BA = folder / f"{way}-{world_size}", ranks[0][way]["after"]
    model = AutoModelForSequenceClassification.from_pretrained(exported)
    ours = build_model(ModelSpec(str(exported), dtype="fp32", kind="value"), seed=99)
    batch = rows(0)
    with torch.no_grad():
        torch.testing.assert_close(plain_values(model, batch), values_BA, rtol=0, atol=1e-5)
        again_BA = ours(batch.tokens_BT, batch.lengths_B, batch.action_BA)[0]
    torch.testing.assert_close(again_BA, values_BA, rtol=0, atol=1e-5)
    assert model.config.num_labels == 1 and model.config.architectures == ["Qwen3ForSequenceClassification"]
    stored = load_file(exported / "model.safetensors")
    assert stored["score.weight"].shape == (1, 32) and not any("lora" in name for name in stored)
    assert AutoTokenizer.from_pretrained(exported).get_vocab()["w5"] == 5


def test_an_exported_critic_serves_as_a_reward_model(world, folder):
    _, world_size = world
    exported, batch = folder / f"whole-{world_size}", rows(0)
    score_BH = scores(build_model(ModelSpec(str(exported), dtype="fp32", kind="reward")), batch)
    expected_B1 = transformers_scores(exported, batch)
    torch.testing.assert_close(score_BH, expected_B1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_frozen_reward_model_scores_as_transformers_does(world, folder, stage):
    expected_B1 = transformers_scores(folder / "scorer", rows(0))
    for rank in world[0]:
        torch.testing.assert_close(rank["scores"][stage], expected_B1, rtol=0, atol=1e-5)
    assert len(expected_B1.unique()) == len(expected_B1)


def scores(model, batch):
    with torch.no_grad():
        return model(batch.tokens_BT, batch.lengths_B, batch.action_BA)[0]


def transformers_scores(path, batch):
    """Row by row without padding: transformers looks for the pad token to find a row's end."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        rows = (batch.tokens_BT[i : i + 1, :length] for i, length in enumerate(batch.lengths_B.tolist()))
        return torch.cat([model(row).logits for row in rows])
