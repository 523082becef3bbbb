"""Critic, reward model and the base of a policy with adapters as Ray roles: they say what plain models say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from critic_roles import ROWS, rollouts
from scenario import SHAPE
from transformers import AutoModelForSequenceClassification

import openrlhf_ext
from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import build_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The models, and what the roles left."""
    folder = tmp_path_factory.mktemp("critic")
    build_tiny_model(folder / "model", SHAPE)
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1).save_pretrained(
        folder / "scorer"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    root = str(Path(openrlhf_ext.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("critic_roles.py")), str(folder)],
        env=environment | {"PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def answer(folder):
    answer = json.loads((folder / "answer.json").read_text())
    plain = ("names", "memory", "out_of_memory")
    return {name: value if name in plain else torch.tensor(value) for name, value in answer.items()}


def values(path: Path, seed: int = 0) -> torch.Tensor:
    """What one plain process says of the rollouts."""
    batch = token_batch(rollouts(), pad_id=0)
    model = build_model(ModelSpec(str(path), dtype="fp32", kind="value"), seed)
    with torch.no_grad():
        return model(batch.tokens_BT, batch.lengths_B, batch.action_BA)[0]


def test_a_sharded_critic_begins_as_a_whole_one(folder, answer):
    """Its new head is drawn from the seed, whatever the ranks and the stage."""
    torch.testing.assert_close(answer["before"], values(folder / "model", seed=11), rtol=0, atol=1e-5)


def test_it_learns(answer):
    first, last = answer["errors"].tolist()
    assert last < 0.5 * first
    assert {"loss", "error_square", "clip_fraction", "grad_norm", "lr"} <= set(answer["names"])


def test_every_role_says_what_memory_it_took(answer):
    peaks = {(role, phase): peak for role, phase, peak in answer["memory"]}
    assert set(peaks) == {
        ("policy", "load"), ("policy", "train"),
        ("critic", "load"), ("critic", "train"), ("critic", "save"),
        ("reward", "load"), ("reward", "score"),
    }  # fmt: skip
    assert all(100e6 < peak < 8e9 for peak in peaks.values())  # a process with torch, and a tiny model


def test_a_rank_that_runs_out_of_memory_says_so(answer):
    role, phase, text = answer["out_of_memory"][0]
    assert (role, phase) == ("policy", "train")
    assert "you tried to allocate" in text and "GB were free." in text


def test_a_rank_that_the_kernel_kills_has_run_out_of_memory(answer):
    if answer["out_of_memory"][1] is None:
        pytest.skip("this user may not make a control group with a limit")
    role, phase, text = answer["out_of_memory"][1]
    assert (role, phase) == ("critic", "train")
    assert "the kernel killed a process while we waited for values of 4 sequences by the critic" in text


def test_its_checkpoint_brings_it_back(answer):
    assert not torch.equal(answer["moved"], answer["saved"])
    assert torch.equal(answer["loaded"], answer["saved"])


def test_its_export_is_the_critic_again(folder, answer):
    torch.testing.assert_close(values(folder / "critic_model"), answer["saved"], rtol=0, atol=1e-5)


def test_transformers_reads_its_export(folder, answer):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "critic_model")
    for row, rollout in enumerate(rollouts()):
        before_last = rollout.token_ids[:-1].tolist()
        with torch.no_grad():
            value = model(torch.tensor([before_last])).logits[0, 0]
        assert float(value) == pytest.approx(float(answer["saved"][row, len(before_last) - 1]), abs=1e-5)


def test_scores_are_those_of_transformers(folder, answer):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "scorer")
    with torch.no_grad():
        expected = [float(model(torch.tensor([rollout.token_ids.tolist()])).logits) for rollout in rollouts()]
    assert answer["scores"].tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(ROWS)


def test_the_reference_is_the_policy_without_its_adapters(answer):
    torch.testing.assert_close(answer["reference"], answer["base"], rtol=0, atol=1e-6)
    assert float((answer["learned"] - answer["base"]).abs().max()) > 1e-3
