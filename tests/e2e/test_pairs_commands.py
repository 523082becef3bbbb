"""The rm and dpo commands: trained, killed, resumed, and their models used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from jobs import run
from pairs import EPOCHS, HELD_OUT, PAIRS, STEPS, Killed, flags_of, killed_and_resumed, losses, prepare_pairs, trained
from peft import PeftModel
from scenario import Record, write_jsonl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec

pytestmark = pytest.mark.slow

KILLED_AFTER = 10
ROWS = [[5, 6, 7, 60, 61], [40, 41, 42, 43, 44, 45, 46], [9, 8, 7]]
LORA = ("--ds.lora.rank", "4", "--adam.lr", "1e-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def whole_rm(folder: Path) -> Record:
    return trained("rm", folder, "rm")[0]


@pytest.fixture(scope="module")
def killed_rm(folder: Path) -> Killed:
    return killed_and_resumed("rm", folder, flags_of("rm", "rm_killed"), KILLED_AFTER)


@pytest.fixture(scope="module")
def adapted_rm(folder: Path) -> Record:
    return trained("rm", folder, "rm_lora", *LORA, "--ckpt.save_hf")[0]


@pytest.fixture(scope="module")
def whole_dpo(folder: Path) -> tuple[Record, str]:
    return trained("dpo", folder, "dpo")


def learned(record: Record) -> None:
    assert losses(record) == [line["train/loss"] for line in record.metrics() if 1 <= line["step"] <= STEPS]
    accuracy, loss = losses(record, "eval/accuracy"), losses(record, "eval/loss")
    assert len(accuracy) == 1 + STEPS // 6
    assert accuracy[-1] >= 0.9 and accuracy[-1] > accuracy[0]
    assert loss[-1] < 0.75 * loss[0]


def equal_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    weights = other.state_dict()
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def scores(model: torch.nn.Module) -> torch.Tensor:
    """Of a classifier of transformers, each row alone."""
    with torch.no_grad():
        return torch.cat([model.eval()(torch.tensor([row])).logits for row in ROWS])


def as_reward_model(path: Path) -> torch.Tensor:
    """The scores of the RL command's reward model."""
    model = build_model(ModelSpec(str(path), dtype="fp32", kind="reward")).eval()
    with torch.no_grad():
        answers = [
            model(torch.tensor([row]), torch.tensor([len(row)]), torch.ones(1, len(row) - 1, dtype=torch.bool))[0]
            for row in ROWS
        ]
    return torch.cat(answers)


def test_a_preference_model_learns(whole_rm: Record):
    learned(whole_rm)


def test_a_killed_rm_goes_on_with_the_very_losses(whole_rm: Record, killed_rm: Killed):
    assert killed_rm.record.repeatable() == whole_rm.repeatable()
    load = AutoModelForSequenceClassification.from_pretrained
    equal_weights(load(whole_rm.folder / "model"), load(killed_rm.record.folder / "model"))


def test_a_preference_model_is_the_reward_model_of_rl(whole_rm: Record):
    model = AutoModelForSequenceClassification.from_pretrained(whole_rm.folder / "model")
    assert model.num_labels == 1
    found = scores(model)
    assert found.std() > 0.01
    torch.testing.assert_close(as_reward_model(whole_rm.folder / "model"), found)


def test_adapters_come_with_their_head(folder: Path, adapted_rm: Record):
    learned(adapted_rm)
    merged = AutoModelForSequenceClassification.from_pretrained(adapted_rm.folder / "model")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    base.config.pad_token_id = merged.config.pad_token_id
    adapted = PeftModel.from_pretrained(base, str(adapted_rm.folder / "adapters"))
    torch.testing.assert_close(scores(adapted), scores(merged), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(as_reward_model(adapted_rm.folder / "model"), scores(merged))


def test_every_checkpoint_holds_a_model_that_loads(adapted_rm: Record):
    folders = sorted((adapted_rm.folder / "checkpoints").glob("step-*"))
    assert [int(folder.name[-2:]) for folder in folders] == [STEPS - 8, STEPS - 4, STEPS]
    load = AutoModelForSequenceClassification.from_pretrained
    equal_weights(load(folders[-1] / "model"), load(adapted_rm.folder / "model"))
    earlier, last = scores(load(folders[0] / "model")), scores(load(folders[-1] / "model"))
    assert not torch.equal(earlier, last)


def test_dpo_learns(folder: Path, whole_dpo: tuple[Record, str]):
    record, output = whole_dpo
    learned(record)
    assert "reference: log-probs that are computed once" in output
    assert f"reference log-probs: {2 * (PAIRS + HELD_OUT)} of {2 * (PAIRS + HELD_OUT)} answers" in output
    model = AutoModelForCausalLM.from_pretrained(record.folder / "model")
    start = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert not torch.equal(model.lm_head.weight, start.lm_head.weight)


def test_a_killed_dpo_goes_on_with_the_very_losses_and_the_reference_it_had(
    folder: Path, whole_dpo: tuple[Record, str]
):
    whole, _ = whole_dpo
    cache = ("--ref.cache_dir", "logprobs")
    killed = killed_and_resumed("dpo", folder, flags_of("dpo", "dpo_killed", *cache), KILLED_AFTER)
    assert killed.record.repeatable() == whole.repeatable()
    load = AutoModelForCausalLM.from_pretrained
    equal_weights(load(whole.folder / "model"), load(killed.record.folder / "model"))
    computed, found = "were computed", "were found"
    answers = 2 * (PAIRS + HELD_OUT)
    assert f"reference log-probs: {answers} {computed}, 0 {found}" in killed.output
    assert f"reference log-probs: 0 {computed}, {answers} {found}" in killed.resumed_output


def test_every_reference_that_is_exact_gives_the_same_losses(folder: Path, whole_dpo: tuple[Record, str]):
    expected = losses(whole_dpo[0])[:6]
    once = ("--train.max_epochs", "1", "--eval.dataset", "None", "--eval.steps", "-1")
    rate = ("--lr_scheduler", "constant", "--lr_warmup_ratio", "0")
    for strategy in ("cached", "model", "offloaded", "quantised"):
        record, output = trained("dpo", folder, f"dpo_{strategy}", *once, *rate, "--ref.strategy", strategy)
        found = losses(record)
        if strategy == "cached":
            expected = found
        tolerance = 0.02 if strategy == "quantised" else 1e-5
        assert found == pytest.approx(expected, rel=tolerance), strategy
        assert "reference: " in output
        if strategy == "quantised":
            assert found != expected


def test_adapters_have_their_base_as_the_reference(folder: Path):
    once = ("--train.max_epochs", "1", "--eval.dataset", "None", "--eval.steps", "-1")
    of = {
        s: trained("dpo", folder, f"lora_{s}", *LORA, *once, "--ref.strategy", s) for s in ("base", "cached", "model")
    }
    expected = losses(of["base"][0])
    assert len(expected) == STEPS // EPOCHS
    for strategy, (record, _) in of.items():
        assert losses(record) == pytest.approx(expected, rel=1e-5), strategy


def test_adapters_on_8_bits_have_their_base_as_the_reference(folder: Path):
    once = ("--train.max_epochs", "1", "--eval.dataset", "None", "--eval.steps", "-1")
    bits = (*LORA, "--ds.load_in_8bit", *once)
    of = {s: trained("dpo", folder, f"int8_{s}", *bits, "--ref.strategy", s) for s in ("base", "cached", "model")}
    expected, cached, whole = (losses(of[strategy][0]) for strategy in ("base", "cached", "model"))
    assert len(expected) == STEPS // EPOCHS and expected[0] == pytest.approx(math.log(2), abs=1e-6)
    assert cached == pytest.approx(expected, rel=1e-5)
    assert whole == pytest.approx(expected, rel=0.02) and whole != expected, "a second model has whole weights"
    exported = build_model(ModelSpec(str(of["base"][0].folder / "model"), dtype="fp32"))
    assert all(parameter.dtype == torch.float32 for parameter in exported.parameters())


def test_dpo_goes_on_from_the_adapters_of_sft(folder: Path):
    rows = [{"input": f"train{i}: repeat {i % 10}=", "answer": str(i % 10) * 3} for i in range(PAIRS)]
    write_jsonl(folder / "sft.jsonl", rows)
    columns = ("--data.dataset", "sft.jsonl", "--data.input_key", "input", "--data.output_key", "answer")
    flags = [*flags_of("sft", "sft_lora", *LORA, *columns, "--data.input_template", "{}"), "--train.max_epochs", "1"]
    at = flags.index("--data.prompt_key")
    flags = flags[:at] + flags[at + 2 :]
    flags += ["--eval.dataset", "None", "--eval.steps", "-1"]
    run("sft", flags, folder)
    adapters = ("--model.model_name_or_path", "sft_lora/adapters", "--adam.lr", "1e-2")
    record, output = trained("dpo", folder, "dpo_on_sft", *adapters)
    assert "reference: a frozen copy of the adapters that training goes on from" in output
    learned(record)
    assert losses(record)[0] == pytest.approx(0.6931, abs=1e-4)
    whole = AutoModelForCausalLM.from_pretrained(record.folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    adapted = PeftModel.from_pretrained(base, str(record.folder / "adapters"))
    rows = torch.tensor([ROWS[1]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(rows).logits, whole(rows).logits, rtol=1e-3, atol=1e-4)
