"""A small preference model from the command line: adapters, models without state, and going on from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs import job
from pairs import EPOCHS, STEPS, flags_of, losses, prepare_pairs, trained
from scenario import Record
from transformers import AutoModelForSequenceClassification

LORA = ("--ds.lora.rank", "4", "--adam.lr", "1e-2")
MODELS_ONLY = ("--ckpt.disable_ds", "--ckpt.save_hf", "--ckpt.save_steps", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_pairs(tmp_path_factory.mktemp("rm"))


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Record:
    return trained("rm", folder, "adapted", *LORA, *MODELS_ONLY)[0]


def test_held_out_pairs_are_told_apart_better_than_at_the_start(adapted: Record):
    accuracy, loss = losses(adapted, "eval/accuracy"), losses(adapted, "eval/loss")
    assert len(loss) == 1 + STEPS // 6
    assert accuracy[-1] >= 0.9 > accuracy[0]
    assert loss[-1] < 0.75 * loss[0]


def test_checkpoints_without_state_are_models(adapted: Record):
    folders = sorted((adapted.folder / "checkpoints").glob("step-*"))
    assert [int(each.name[-2:]) for each in folders] == [8, 16, STEPS]
    assert not [each for each in folders if (each / "state").exists()]
    load = AutoModelForSequenceClassification.from_pretrained
    last, exported = (load(path / "model").state_dict() for path in (folders[-1], adapted.folder))
    assert all(torch.equal(last[name], weight) for name, weight in exported.items())


def test_they_are_nothing_to_resume_from(folder: Path, adapted: Record):
    flags = [*flags_of("rm", "adapted", *LORA, *MODELS_ONLY), "--ckpt.load_enable"]
    with job("rm", flags, folder) as started:
        output = started.wait(exit_code=2)
    assert "holds a model and no state to go on from" in output


@pytest.mark.slow
def test_rm_goes_on_from_its_adapters_and_their_head(folder: Path, adapted: Record):
    once = ("--train.max_epochs", "1", "--adam.lr", "1e-3")
    more, _ = trained("rm", folder, "more", "--model.model_name_or_path", "adapted/adapters", *once)
    assert losses(more, "eval/loss")[0] == pytest.approx(losses(adapted, "eval/loss")[-1], rel=1e-4)
    assert len(losses(more)) == STEPS // EPOCHS
    assert (more.folder / "adapters" / "adapter_model.safetensors").is_file()
