"""The sft command: trained, killed, resumed, and its model used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from jobs import job, run
from safetensors.torch import load_file
from scenario import SHAPE, Record, output_to, row, write_jsonl
from transformers import AutoModelForCausalLM

from openrlhf_ext.evaluation.answers import read_answers
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


def test_a_run_that_reaches_its_goal_ends_there_with_a_model_and_stays_ended(runs: SftRuns):
    folder = runs.whole.folder.parent
    losses = {line["step"]: line["eval/loss"] for line in runs.whole.metrics() if "eval/loss" in line}
    goal = next(step for step in sorted(losses) if step and losses[step] <= losses[20])
    flags = [*FLAGS.split(), *output_to("goal"), "--train.stop_when", f"eval_loss<={losses[goal]!r}"]
    for extra in ([], ["--ckpt.load_enable"]):
        output = run("sft", [*flags, *extra], folder)
        assert f"at most {STEPS} optimizer steps" in output
        assert f"is reached: eval/loss is {losses[goal]:.4g} after step {goal}" in output
        result = json.loads((folder / "goal" / "result.json").read_text())
        assert result["steps"] == goal
        assert result["reached"] == {"metric": "eval/loss", "value": losses[goal], "step": goal}
        assert (folder / "goal" / "model" / "config.json").is_file()
    stopped = Record(folder / "goal")
    assert stopped.steps() == [step for step in runs.whole.steps() if step <= goal]
    assert stopped.metrics()[-1]["stop_when/reached"] == 1.0


@pytest.mark.slow
def test_answers_are_sampled_graded_and_kept_and_training_does_not_notice(runs: SftRuns):
    folder = runs.whole.folder.parent
    flags = "--eval.scorer last_number --eval.max_new_tokens 8 --eval.group_by difficulty --eval.temperature 1"
    run("sft", [*FLAGS.split(), *output_to("answered"), *flags.split(), "--eval.n_samples_per_prompt", "2"], folder)
    answered = Record(folder / "answered")
    lines = [line for line in answered.metrics() if "eval/held_out/accuracy" in line]
    steps = [line["step"] for line in lines]
    assert steps == [0, 10, 20, 30, 40, STEPS]
    for line in lines:
        who, rows = read_answers(answered.folder / "evaluations" / f"step-{line['step']:08d}")
        assert who.name == f"{answered.folder.name} step {line['step']}"
        assert len(rows) == 2 * 20
        right = [sum(row.outcome == "right" for row in rows if row.sample == sample) for sample in (0, 1)]
        assert line["eval/held_out/accuracy"] == pytest.approx(sum(right) / 40)
        assert {"eval/held_out/pass@2", "eval/difficulty/1/accuracy"} <= line.keys()
        assert all(row.extracted is None or row.extracted in row.answer for row in rows)
    texts = [tuple(row.answer for row in read_answers(path)[1]) for path in (answered.folder / "evaluations").iterdir()]
    assert len(set(texts)) > 1, "other weights say something else"
    trained = [{k: v for k, v in line.items() if not k.startswith("eval/held_out") and "/difficulty/" not in k}
               for line in answered.repeatable()]  # fmt: skip
    assert trained == runs.whole.repeatable()
    for name, weight in load_file(answered.folder / "model" / "model.safetensors").items():
        assert torch.equal(weight, load_file(runs.whole.folder / "model" / "model.safetensors")[name]), name


def test_memory_is_measured_in_every_phase(runs: SftRuns):
    lines = runs.whole.metrics()
    result = json.loads((runs.whole.folder / "result.json").read_text())
    for phase in ("load", "train", "evaluate", "save"):
        measured = [line[name] for line in lines if (name := f"memory/model/{phase}/measured_gb") in line]
        assert measured and all(0.1 < value < 4 for value in measured), "a process with torch, and a tiny model"
        assert result["memory"]["model"][phase]["measured_gb"] >= max(measured)
    assert "peaks of memory, GB of one process:" in runs.output


def test_a_run_that_runs_out_of_memory_says_where_and_what_would_help(tmp_path):
    """It trains, and then its process is forbidden to take what a step takes."""
    build_tiny_model(tmp_path / "model", SHAPE)
    write_jsonl(tmp_path / "sft.jsonl", [row("train", i) | {"input": f"{i}" + " 7" * 500} for i in range(EXAMPLES)])
    flags = [*FLAGS.split(), *output_to("out"), "--data.max_len", "2000", "--train.max_epochs", "50"]
    flags += ["--eval.dataset", "None", "--eval.steps", "-1", "--ckpt.save_steps", "2"]
    record, held = Record(tmp_path / "out"), []

    def through_two_steps() -> bool:
        if record.steps():
            held.append(data_bytes(started.driver.pid))
        return len(record.steps()) > 3

    with job("sft", flags, tmp_path) as started:
        started.until(through_two_steps, "step 4")
        # Between two steps it has least. A step makes a bucket of 0.4 GB, and activations of 0.1 GB.
        started.driver.rlimit(psutil.RLIMIT_DATA, (min(held) + 30_000_000,) * 2)
        output = started.wait(exit_code=2)
    last = record.steps()[-1]
    told = output[output.index("Out of memory in phase train of the model (") :].splitlines()
    assert "can't allocate memory" in told[0] and "may take" in told[0] and "GB were free." in told[0]
    assert "Traceback" not in output
    assert "model train" in told[1]
    assert any(line.endswith("host model activations") for line in told)
    assert any(line.startswith("The cheapest change: --train.micro_batch_size") for line in told)
    saved = last - last % 2
    assert f"step {saved} is safe in out/checkpoints/step-{saved:08d}: continue with --ckpt.load_enable" in told[-1]


def data_bytes(pid: int) -> int:
    """What RLIMIT_DATA limits."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) * 1024
