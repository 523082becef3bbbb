"""The rl command on one GPU that policy, reference and engine share by turns: ten steps of a 0.6B model.

GPU_REPORT names a folder for what was measured: one JSON file for each ZeRO stage.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import watch
from scenario import Record, write_jsonl
from transformers import Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.models.tiny import build_tokenizer

pytestmark = pytest.mark.timeout(900)

STEPS, PROMPTS, SAMPLES, NEW_TOKENS = 10, 16, 4, 512

# Random weights say nothing that could be judged: what differs is the prompt.
REWARD = """\
def reward_func(queries, prompts, labels, **kwargs):
    rewards = [len(prompt) % 7 / 7 + float(len(query) % 3 == 0) for query, prompt in zip(queries, prompts)]
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}
"""

FLAGS = f"""
--device cuda --actor.model_name_or_path model --reward.remote_url reward.py --data.prompt_dataset train.jsonl
--train.colocate_all --vllm.enable_sleep --ds.enable_sleep --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1
--ds.param_dtype bf16 --ds.attn_implementation sdpa --actor.gradient_checkpointing_enable
--rollout.batch_size {PROMPTS} --rollout.n_samples_per_prompt {SAMPLES} --rollout.max_new_tokens {NEW_TOKENS}
--rollout.micro_batch_size 16 --data.max_len 640 --train.batch_size {PROMPTS * SAMPLES} --train.micro_batch_size 16
--actor.adam.lr 3e-4 --actor.lr_scheduler constant --algo.kl.estimator k3
--algo.advantage.estimator reinforce --vllm.gpu_memory_utilization 0.4 --ckpt.disable_ds
""".split()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-0.6B in shape, with random weights; its tokenizer knows fewer tokens than it has."""
    folder = tmp_path_factory.mktemp("workshop")
    tokenizer = build_tokenizer(max_positions=4096)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"input": f"Say something about number {i}. " + "Please. " * (i % 5)} for i in range(STEPS * PROMPTS)]
    write_jsonl(folder / "train.jsonl", rows)
    (folder / "reward.py").write_text(REWARD)
    return folder


# Stage 2 with the compiled graphs of a real run, stage 3 without: starting them takes a minute.
@pytest.mark.parametrize(("stage", "more"), [(2, []), (3, ["--vllm.enforce_eager"])])
def test_ten_steps(workshop: Path, monkeypatch: pytest.MonkeyPatch, stage: int, more: Sequence[str]):
    name, phases_file = f"zero{stage}", workshop / f"phases-{stage}.jsonl"
    monkeypatch.setitem(jobs.MODULES, "recorded rl", "recorded_rl")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PHASES", str(phases_file))
    flags = [*FLAGS, "--ds.zero_stage", str(stage), *more]
    flags += ["--ckpt.output_dir", name, "--ckpt.path", f"{name}/checkpoints"]
    with watch.gpu_memory() as samples, jobs.job("recorded rl", flags, workshop) as started:
        started.wait()
        seconds = started.seconds_taken
    lines = Record(workshop / name).metrics()
    report = {
        "zero_stage": stage,
        "seconds": round(seconds, 1),
        "before_mib": samples[0][1],
        "peak_mib": max(used for _, used in samples),
        "phases": watch.by_phase(phases_file, samples),
        "policy_peak_gb": max(line.get("memory/policy/train/measured_gb", 0.0) for line in lines),
        "mismatch_abs": [line["mismatch/abs"] for line in lines],
        "kl": [line["policy/kl"] for line in lines],
        "tokens": SAMPLES * PROMPTS * lines[-1]["response/length"],
        "on": on_what(),
    }
    print(watch.table(report["phases"]), json.dumps(report, indent=1), sep="\n")
    if "GPU_REPORT" in os.environ:
        folder = Path(os.environ["GPU_REPORT"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")

    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["reward"]) and math.isfinite(line["policy/kl"]) for line in lines)
    assert all(line["rollout/samples"] == PROMPTS * SAMPLES for line in lines)
    # Engine and trainer differ by bf16 rounding, by far less than the policy has moved from where it started:
    # for a small step the KL is half the mean square of the log-ratio.
    moved = math.sqrt(2 * lines[-1]["policy/kl"])
    assert lines[-1]["mismatch/abs"] < 0.3 * moved
    assert max(report["mismatch_abs"]) < 0.1
    # Nobody keeps what another needs: the policy's state is not there in GENERATE, nor the cache in UPDATE.
    cache_mib = report["phases"]["generate"]["peak_mib"] - report["phases"]["update"]["peak_mib"]
    assert cache_mib > 0
    assert (workshop / name / "model" / "model.safetensors").is_file()


def on_what() -> dict[str, Any]:
    packages = ("torch", "vllm", "ray", "deepspeed", "transformers")
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    gpu = subprocess.check_output(asked, text=True).strip()
    return {"gpu": gpu, **{name: importlib.metadata.version(name) for name in packages}}
