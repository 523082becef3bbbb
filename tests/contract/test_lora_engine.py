"""Adapters in a DeepSpeedEngine: trained as by peft alone, left out, merged, saved; whole and 4-bit weights."""

from __future__ import annotations

import engine_scenarios as scenarios
import lora_scenarios
import pytest
import torch
from engine_scenarios import plain_logprobs, rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.timeout(400)

STAGES = [0, 2, 3]
VARIANTS = ["whole, dropout", "sharded, bf16", "4-bit", "4-bit, stage 2", "4-bit, bf16"]
EVERY = [*(("two", stage) for stage in STAGES), *(("one", variant) for variant in VARIANTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    for name, tied in (("two", True), ("one", False)):
        scenarios.build_model(folder / name, tied=tied)
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(folder / "one").config)
    other.save_pretrained(folder / "other")
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    two = scenarios.spawn(2, lora_scenarios.two_ranks, folder, folder / "two", folder)
    one = scenarios.spawn(1, lora_scenarios.one_rank, folder, folder / "one", folder, folder / "other")
    return {"two": two, "one": [one[0]["runs"]], "rest": one[0]}


@pytest.fixture
def runs(request, answers):
    """What every rank says of a run."""
    world, name = request.param
    return [answer[name] for answer in answers[world]]


every = pytest.mark.parametrize("runs", EVERY, indirect=True, ids=str)


@pytest.mark.parametrize("stage", STAGES)
def test_three_steps_equal_plain_peft(answers, folder, stage):
    plain = lora_scenarios.plain_peft_training(folder / "two")
    runs = [answer[stage] for answer in answers["two"]]
    for index, expected in enumerate(plain["losses"]):
        reports = [[*run["reports"], run["last"]][index] for run in runs]
        assert sum(report["loss"].value for report in reports) == pytest.approx(expected, rel=1e-5)
    for run in runs:
        torch.testing.assert_close(run["logp"], plain["logp"], rtol=0, atol=1e-5)


@every
def test_new_adapters_and_adapters_left_out_are_the_base_bit_for_bit(runs):
    for run in runs:
        assert torch.equal(run["fresh"], run["base"])
        assert torch.equal(run["off"], run["base"])
        assert (run["logp"] - run["base"]).abs().max() > 0.1


@every
def test_resumes_bit_for_bit(runs):
    for run in runs:
        again = run["again"]
        assert run["client"] == {"step": 2} and again["last"] == run["last"]
        assert torch.equal(again["drawn"], run["drawn"])
        assert all(torch.equal(again["weights"][name], weight) for name, weight in run["weights"].items())


@every
def test_merged_weights_give_the_trainers_log_probs(runs, request, folder):
    world, name = request.node.callspec.params["runs"]
    half = "bf16" in str(name)
    for run in runs:
        model = AutoModelForCausalLM.from_pretrained(folder / world, dtype=torch.bfloat16 if half else torch.float32)
        assert set(run["weights"]) == {name for name, _ in model.named_parameters()}
        model.load_state_dict(run["weights"], strict=False)
        with torch.no_grad():
            expected_BA = plain_logprobs(model, rows(0), 1.0)[0]
        torch.testing.assert_close(run["logp"], expected_BA, rtol=0, atol=0.2 if half else 1e-5)


@every
def test_a_checkpoint_holds_no_frozen_weight(runs, request, folder):
    world, name = request.node.callspec.params["runs"]
    state = folder / (f"two-{name}" if world == "two" else name) / "deepspeed"
    found = {}
    for file in state.glob("*model_states.pt"):
        found |= torch.load(file, weights_only=False)["module"]
    assert found and all(".lora_" in key for key in found)


@pytest.mark.parametrize(("world", "name"), [("two", "two-3"), ("one", "4-bit")])
def test_exported_adapters_and_the_exported_model_are_what_was_trained(answers, folder, world, name):
    run = answers[world][0][3 if world == "two" else name]
    merged = AutoModelForCausalLM.from_pretrained(folder / name / "merged")
    assert getattr(merged.config, "quantization_config", None) is None
    base = AutoModelForCausalLM.from_pretrained(folder / world)
    if name == "4-bit":  # the adapters were trained on what the 4 bits mean
        weights = lora_scenarios.base_weights(folder / world)
        base.load_state_dict(weights, strict=False)
    adapted = PeftModel.from_pretrained(base, folder / name / "adapters")
    assert adapted.peft_config["default"].base_model_name_or_path == str(folder / world)
    for model in (merged, adapted.eval()):
        with torch.no_grad():
            torch.testing.assert_close(plain_logprobs(model, rows(0), 1.0)[0], run["logp"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("rank", "with adapters of rank 4 and alpha 8 on all-linear, this run has of rank 2 and alpha 8 on all-linear"),
        ("alpha", "this run has of rank 4 and alpha 4"),
        ("targets", "this run has of rank 4 and alpha 8 on q_proj and v_proj"),
        ("none", "this run has none"),
        ("base", "holds adapters that were trained on another model"),
    ],
)
def test_a_state_of_other_adapters_or_another_base_is_refused(answers, change, sentence):
    assert sentence in answers["rest"]["refusals"][change]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_what_is_trained_has_float32_copies_and_moments(answers, stage):
    masters, moments, trained = answers["rest"]["masters"][stage]
    assert trained > 1000 and masters == moments == trained


@pytest.mark.parametrize("stage", lora_scenarios.SLEEPERS, ids=str)
def test_a_sleep_moves_frozen_weights_too_and_changes_nothing(answers, stage):
    same, stayed = answers["rest"]["slept"][stage[0], stage[1]]
    assert same and not stayed
