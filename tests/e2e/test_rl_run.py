"""A whole run: what it leaves on disk, what its processes may touch while it trains."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from base_run import BaseRun
from scenario import PROMPTS, STEPS

from openrlhf_ext.config import parse
from openrlhf_ext.evaluation.answers import read_answers

# Greedy tokens of the exported model and their log-probs, by both libraries.
GENERATE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams

folder, prompts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokens = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
ours, theirs = [], []
for ids in tokens:
    answer = model.generate(
        torch.tensor([ids]), max_new_tokens=10, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    sampled = answer.sequences[0, len(ids):].tolist()
    logprobs = [score[0].log_softmax(-1)[token].item() for score, token in zip(answer.scores, sampled)]
    ours.append([sampled, logprobs])
engine = LLM(folder, dtype="float32", max_model_len=64, enforce_eager=True, kv_cache_memory_bytes=64 << 20)
greedy = SamplingParams(temperature=0.0, max_tokens=10, logprobs=0)
for output in engine.generate([{"prompt_token_ids": ids} for ids in tokens], greedy):
    (answer,) = output.outputs
    logprobs = [choices[token].logprob for choices, token in zip(answer.logprobs, answer.token_ids)]
    theirs.append([list(answer.token_ids), logprobs])
print("ANSWER", json.dumps([ours, theirs]))
"""


def test_the_result_is_said_and_written(base: BaseRun):
    result = json.loads((base.record.folder / "result.json").read_text())
    assert {"reward_before", "reward_after", "steps", "seconds", "checkpoint", "rollouts"} <= result.keys()
    assert result["steps"] == STEPS
    lines = base.record.metrics()
    assert result["reward_before"] == lines[0]["eval/held_out/reward"]
    assert result["reward_after"] == lines[-1]["eval/held_out/reward"]
    assert (Path(result["checkpoint"]) / "model.safetensors").is_file()
    assert Path(result["rollouts"]) == base.record.folder / "rollouts"
    for said in (f"{result['reward_before']:.3f} before", result["checkpoint"], result["rollouts"]):
        assert said in base.output
    assert f"{PROMPTS} prompts, {STEPS} rollout steps on this cpu" in base.output


def test_the_answers_of_evaluations_are_kept_as_eval_keeps_them(base: BaseRun):
    lines = [line for line in base.record.metrics() if "eval/held_out/pass@1" in line]
    assert [line["step"] for line in lines] == [0, STEPS]
    tables = [read_answers(base.record.folder / "evaluations" / f"step-{line['step']:08d}") for line in lines]
    assert tables[0][0].fingerprint != tables[1][0].fingerprint
    for line, (_, rows) in zip(lines, tables, strict=True):
        assert len(rows) == 6 * 4
        assert {row.outcome for row in rows} <= {"right", "wrong", "unanswered", "truncated"}
        assert line["eval/held_out/accuracy"] == pytest.approx(line["eval/held_out/pass@1"])
        assert sum(row.outcome == "right" for row in rows) == round(24 * line["eval/held_out/accuracy"])
        assert all(row.reference in row.answer for row in rows if row.outcome == "right")
        assert {row.columns["difficulty"] for row in rows} == {0, 1, 2, 3, 4, 5}
    assert [row.pair for row in tables[0][1]] == [row.pair for row in tables[1][1]]


def test_every_step_has_one_line_of_metrics(base: BaseRun):
    lines = base.record.metrics()
    assert [line["step"] for line in lines] == list(range(STEPS + 1)), "step 0 is the evaluation before training"
    for line, prompts in zip(lines[1:], [8, 8, 4] * 2, strict=True):
        assert line["rollout/prompts"] == prompts
        assert line["rollout/samples"] == 4 * prompts
        assert line["policy/optimizer_steps"] == prompts * 4 // 16
        assert line["reward/part/reward/digits"] <= line["reward"]
        assert line["seconds/step"] > 0
        assert line["mismatch/abs_max"] < 1e-4, "the engine samples from the weights that are trained"
    assert lines[-1]["policy/kl"] > 0, "the policy has moved"


def test_memory_is_measured_by_role_and_phase_beside_what_was_predicted(base: BaseRun):
    memory = json.loads((base.record.folder / "result.json").read_text())["memory"]
    assert {role: set(phases) for role, phases in memory.items()} == {
        "policy": {"load", "train", "publish", "save"},
        "reference": {"load", "train"},
        "engines": {"load", "generate"},
        "driver": {"step"},
    }
    lines = base.record.metrics()
    for role, phases in memory.items():
        for phase, figures in phases.items():
            logged = [line[name] for line in lines if (name := f"memory/{role}/{phase}/measured_gb") in line]
            assert logged and max(logged) <= figures["measured_gb"] < 4, "processes with torch, and tiny models"
            said = [line[name] for line in lines if (name := f"memory/{role}/{phase}/predicted_gb") in line]
            assert said == [figures["predicted_gb"]], "told once"
    assert "rl of model on CPU: fits" in base.output
    assert "peaks of memory, GB of one process:" in base.output


def test_every_rollout_is_on_disk(base: BaseRun):
    for step, line in enumerate(base.record.metrics()[1:], start=1):
        groups = base.record.rollouts(step)
        assert len(groups) == line["rollout/prompts"]
        assert all(len(group.members) == 4 for group in groups)
        assert sum(base.record.rewards(step)) / len(base.record.rewards(step)) == pytest.approx(line["reward"])
        for group in groups:
            assert group.prompt.label in {str(n) for n in range(11)}
            assert group.prompt.meta.keys() == {"difficulty"}
            for member in group.members:
                assert member.rollout.versions == (step - 1, step - 1)
                assert member.score.parts.keys() == {"reward", "reward/digits"}
    seen = [
        sorted(group.prompt.id for step in steps for group in base.record.rollouts(step))
        for steps in ([1, 2, 3], [4, 5, 6])
    ]
    assert seen[0] == seen[1] and len(set(seen[0])) == PROMPTS, "an episode is every prompt once"


def test_the_config_is_written_and_can_be_read_back(base: BaseRun, workshop: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workshop)
    config = parse("rl", ["--config", "base/config.yaml"]).config
    assert (workshop / "base/checkpoints/config.yaml").read_text() == (workshop / "base/config.yaml").read_text()
    assert config.actor.adam.lr == 3e-3
    assert config.ckpt.output_dir == "base"
    assert config.data.label_key == "answer"


def test_the_exported_model_generates_with_both_libraries(base: BaseRun):
    prompts = [group.prompt.text for group in base.record.rollouts(1)]
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(base.record.folder / "model"), json.dumps(prompts)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    for (tokens, logprobs), (their_tokens, their_logprobs) in zip(*json.loads(answer.removeprefix("ANSWER"))):
        assert tokens and tokens == their_tokens
        assert logprobs == pytest.approx(their_logprobs, abs=1e-4)


def test_a_cpu_run_never_touches_a_gpu(base: BaseRun):
    workers = [process for process in base.processes if process.name.startswith(("ray::Vllm", "ray::TrainWorker"))]
    assert len(workers) == 3, [process.name for process in base.processes]
    for process in workers:
        assert process.environment is not None
        assert process.environment["CUDA_VISIBLE_DEVICES"] == ""
        assert process.environment["DS_ACCELERATOR"] == "cpu"
    drivers = [process for process in base.processes if process.name.startswith("python")]
    assert drivers
    for process in base.processes:  # without NVIDIA's driver no process can make a context
        assert not any(name.startswith("libcuda.so") for name in process.libraries), process.name


def test_every_service_listens_on_loopback_only(base: BaseRun):
    listening = {process.name: process.listens_on for process in base.processes if process.listens_on}
    assert {"gcs_server", "raylet"} <= listening.keys(), "the services were seen"
    for name, addresses in listening.items():
        for address in addresses:
            assert ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback, f"{name} listens on {address}"
