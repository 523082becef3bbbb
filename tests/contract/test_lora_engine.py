"""Adapters in a DeepSpeedEngine on two ranks, on whole, 4-bit and 8-bit weights: trained as by peft alone, left out,
saved, and merged into weights with which a real vLLM engine says what the trainer says."""

from __future__ import annotations

import engine_scenarios as scenarios
import lora_scenarios
import pytest
import torch
from engine_scenarios import plain_logprobs, rows
from lora_scenarios import RUNS, SLEEPERS, given_rows
from peft import PeftModel
from served_model import EngineProcess, build_model
from transformers import AutoModelForCausalLM

from openrlhf_ext.device import Device
from openrlhf_ext.rollout.transfer import make_sender
from openrlhf_ext.rollout.vllm_engine import EngineSettings

CPU = Device("cpu", 0, frozenset({"bf16"}))
TOLERANCE = 1e-4
SERVED = ("stage 3", "stage 2, 4-bit", "stage 2, 8-bit")

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    model = build_model(folder / "base", tied=True)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    model.save_pretrained(folder / "other")
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """Of every rank."""
    return scenarios.spawn(2, lora_scenarios.every_run, folder, folder / "base", folder / "other", folder)


@pytest.fixture(params=RUNS)
def name(request):
    return request.param


@pytest.fixture
def runs(answers, name):
    return [answer["runs"][name] for answer in answers]


@pytest.mark.parametrize("name", ["stage 0", "stage 2", "stage 3"])
def test_three_steps_equal_plain_peft(runs, folder):
    plain = lora_scenarios.plain_peft_training(folder / "base")
    for index, expected in enumerate(plain["losses"]):
        reports = [[*run["reports"], run["last"]][index] for run in runs]
        assert sum(report["loss"].value for report in reports) == pytest.approx(expected, rel=1e-5)
    for run in runs:
        torch.testing.assert_close(run["logp"], plain["logp"], rtol=0, atol=5e-5)


def test_new_adapters_and_adapters_left_out_are_the_base_bit_for_bit(runs):
    for run in runs:
        assert torch.equal(run["fresh"], run["base"])
        assert torch.equal(run["off"], run["base"])
        assert (run["logp"] - run["base"]).abs().max() > 0.1


def test_resumes_bit_for_bit(runs):
    for run in runs:
        again = run["again"]
        assert run["client"] == {"step": 2} and again["last"] == run["last"]
        assert torch.equal(again["drawn"], run["drawn"])
        assert all(torch.equal(again["weights"][name], weight) for name, weight in run["weights"].items())


def test_merged_weights_give_the_trainers_log_probs(runs, name, folder):
    half = "bf16" in name
    for run in runs:
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16 if half else torch.float32)
        assert set(run["weights"]) == {name for name, _ in model.named_parameters()}
        model.load_state_dict(run["weights"], strict=False)
        with torch.no_grad():
            expected_BA = plain_logprobs(model, rows(0), 1.0)[0]
        error_BA = (run["logp"] - expected_BA).abs()
        assert error_BA.max() < 5e-5 if not half else error_BA[run["logp"] != 0].mean() < 0.2


def test_a_checkpoint_holds_no_frozen_weight(runs, name, folder):
    found: dict[str, object] = {}
    for file in (folder / name / "deepspeed").glob("*model_states.pt"):
        found |= torch.load(file, weights_only=False)["module"]
    assert found and all(".lora_" in key for key in found)


@pytest.mark.parametrize("name", SERVED)
def test_exported_adapters_and_the_exported_model_are_what_was_trained(runs, name, folder):
    merged = AutoModelForCausalLM.from_pretrained(folder / name / "merged")
    assert getattr(merged.config, "quantization_config", None) is None
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    if "bit" in name:  # the adapters were trained on what the 4 or 8 bits mean
        bits = RUNS[name][1]
        base.load_state_dict(lora_scenarios.base_weights(folder / "base", bits), strict=False)
    adapted = PeftModel.from_pretrained(base, folder / name / "adapters").eval()
    assert adapted.peft_config["default"].base_model_name_or_path == str(folder / "base")
    for model in (merged, adapted):
        with torch.no_grad():
            logp_BA = plain_logprobs(model, rows(0), 1.0)[0]
        torch.testing.assert_close(logp_BA, runs[0]["logp"], rtol=0, atol=5e-5)


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
    assert all(sentence in answer["refusals"][change] for answer in answers)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_what_is_trained_has_float32_copies_and_moments(answers, stage):
    for answer in answers:
        copies, moments, trained = answer["masters"][stage]
        assert copies == moments == pytest.approx(trained / 2, rel=0.01)


@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_a_sleep_moves_frozen_weights_too_and_changes_nothing(answers, sleeper):
    for answer in answers:
        same, stayed = answer["slept"][sleeper]
        assert same and not stayed


@pytest.fixture(scope="module")
def engine(answers, folder):
    """vLLM, started from the folder that the policy with adapters on sharded weights was exported to."""
    model = str(folder / SERVED[0] / "merged")
    settings = EngineSettings(
        model=model, transport="object_store", max_model_len=64, dtype="float32", kv_cache_gb=0.03
    )
    engine = EngineProcess(settings, CPU)
    yield engine
    engine.close()


def assert_same_logprobs(engine, logp_BA):
    batch = given_rows()
    given = [tokens[:length].tolist() for tokens, length in zip(batch.tokens_BT, batch.lengths_B, strict=True)]
    for row, found in enumerate(engine.call("logprobs", given)):
        torch.testing.assert_close(torch.tensor(found), logp_BA[row, : len(found)], rtol=0, atol=TOLERANCE)


def test_an_engine_started_from_the_export_says_what_the_trainer_says(engine, answers):
    logp_BA, _ = answers[0]["runs"][SERVED[0]]["published"][1]
    assert_same_logprobs(engine, logp_BA)


@pytest.mark.parametrize("name", SERVED)
def test_after_each_publish_the_engine_says_what_the_trainer_says(engine, runs):
    moments = runs[0]["published"]
    assert (moments[1][0] - moments[0][0]).abs().max() > 0.1, "training went on between them"
    for logp_BA, buckets in moments:
        sender = make_sender("object_store")
        version = engine.call("version") + 1
        engine.call("begin_update")
        assert len(buckets) > 3
        for bucket in buckets:
            sender.send(bucket, lambda payload: engine.start("load_bucket", payload))
        engine.call("end_update", version)
        assert_same_logprobs(engine, logp_BA)
