"""The sft command: trained, killed, resumed, and its model used."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jobs import job, run
from scenario import SHAPE, Record, output_to, row, write_jsonl
from transformers import AutoModelForCausalLM

from openrlhf_ext.models.tiny import build_tiny_model

EXAMPLES, EPOCHS, BATCH = 90, 4, 8
STEPS = EPOCHS * 12  # 90 examples in batches of 8: eleven whole ones and a short one
KILLED_AFTER = 20

FLAGS = f"""
--device cpu --ds.param_dtype fp32 --model.model_name_or_path model --data.dataset sft.jsonl --data.output_key answer
--data.max_len 48 --data.input_template {{}} --train.batch_size {BATCH} --train.micro_batch_size 4
--train.max_epochs {EPOCHS} --adam.lr 1e-2 --eval.dataset held_out.jsonl --eval.steps 10 --ckpt.save_steps 7
"""


@dataclass(frozen=True)
class SftRuns:
    whole: Record
    output: str
    resumed: Record
    resumed_output: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SftRuns:
    folder = tmp_path_factory.mktemp("sft")
    build_tiny_model(folder / "model", SHAPE)
    write_jsonl(folder / "sft.jsonl", [row("train", i) for i in range(EXAMPLES)])
    write_jsonl(folder / "held_out.jsonl", [row("held", i) for i in range(20)])
    output = run("sft", [*FLAGS.split(), *output_to("whole")], folder)
    killed = Record(folder / "killed")
    flags = [*FLAGS.split(), *output_to("killed")]
    with job("sft", flags, folder) as started:
        started.until(lambda: KILLED_AFTER in killed.steps(), f"step {KILLED_AFTER}")
        started.kill_driver()
        started.until_gone()
    assert STEPS not in killed.steps(), "it was killed on the way"
    resumed_output = run("sft", [*flags, "--ckpt.load_enable"], folder)
    return SftRuns(Record(folder / "whole"), output, killed, resumed_output)


def test_it_learns(runs: SftRuns):
    lines = runs.whole.metrics()
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    evaluated = [value for line in lines for name, value in line.items() if name.startswith("eval/") and "loss" in name]
    assert evaluated[-1] < 0.8 * evaluated[0]


def test_a_killed_run_goes_on_with_the_very_losses(runs: SftRuns):
    assert "step 1/" not in runs.resumed_output
    assert runs.resumed.repeatable() == runs.whole.repeatable()


def test_both_end_with_the_same_model(runs: SftRuns):
    models = [AutoModelForCausalLM.from_pretrained(record.folder / "model") for record in (runs.whole, runs.resumed)]
    start = AutoModelForCausalLM.from_pretrained(runs.whole.folder.parent / "model").state_dict()
    states = [model.state_dict() for model in models]
    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name
    assert not torch.equal(states[0]["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    answer = models[0].generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False)
    assert answer.shape[1] > 3
