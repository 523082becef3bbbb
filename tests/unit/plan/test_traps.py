"""Every trap is found in the flags of a run that is in it, and not in those of one beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import pytest

from openrlhf_ext.config import parse
from openrlhf_ext.plan import speed
from openrlhf_ext.plan.arithmetic import arithmetic_of
from openrlhf_ext.plan.cards import card_named, card_of_size
from openrlhf_ext.plan.memory import memory_of
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.traps import TRAPS, code_of, warnings_of
from openrlhf_ext.plan.types import DataSize, Hardware

MODEL = "Qwen/Qwen3-0.6B"
BASE = {
    "sft": f"--model.model_name_or_path {MODEL} --adam.lr 1e-5",
    "rm": f"--model.model_name_or_path {MODEL}",
    "dpo": f"--model.model_name_or_path {MODEL} --adam.lr 1e-6",
    "rl": (
        f"--actor.model_name_or_path {MODEL} --algo.advantage.estimator reinforce --rollout.batch_size 64 "
        "--train.batch_size 64"
    ),
}


@dataclass(frozen=True)
class Run:
    command: str
    flags: str = ""
    rows: int | None = 6400
    mean_tokens: float | None = None
    mean_prompt_tokens: float | None = None
    eval_rows: int | None = None
    gpu: str | float | None = 80.0
    count: int = 1
    host_gb: float | None = None

    def codes(self) -> dict[str, str]:
        parsed = parse(self.command, f"{BASE[self.command]} {self.flags}".split(), planning=True)
        data = DataSize(
            self.rows,
            self.mean_tokens,
            parsed.config.data.max_len,
            mean_prompt_tokens=self.mean_prompt_tokens,
            eval_rows=self.eval_rows,
            how="given",
        )
        card = card_of_size(self.gpu) if isinstance(self.gpu, float) else card_named(self.gpu) if self.gpu else None
        host = int(self.host_gb * 1e9) if self.host_gb is not None else None
        setup = setup_of(self.command, parsed.config, parsed.explicit, Hardware(card, self.count, 1, host), data)
        warnings = warnings_of(setup, parsed.explicit, arithmetic_of(setup), memory_of(setup))
        assert all(warning.text.endswith(".") and "  " not in warning.text for warning in warnings)
        return {warning.code: warning.text for warning in warnings}


LORA = "--ds.lora.rank 16 --ds.lora.alpha 32"
COLOCATED = "--train.colocate_all --vllm.gpu_memory_utilization 0.5 --actor.num_gpus_per_node 1"
ASLEEP = f"{COLOCATED} --vllm.enable_sleep --ds.enable_sleep"
HELD_OUT = "--eval.dataset held_out.jsonl"
ANSWERED = f"--data.output_key answer {HELD_OUT} --eval.scorer exact"

# (code, a run that is in the trap, a run that is not)
CASES = [
    (
        "save-interval-beyond-run",
        Run("rl", "--ckpt.save_steps 50", rows=638),
        Run("rl", "--ckpt.save_steps 5", rows=638),
    ),
    (
        "reference-never-follows",
        Run("rl", "--ref.sync_steps 101"),
        Run("rl", "--ref.sync_steps 100"),
    ),
    (
        "evaluation-dearer-than-training",
        Run("sft", f"{ANSWERED} --eval.max_new_tokens 200 --eval.steps 10", mean_tokens=50, eval_rows=500),
        Run(
            "sft",
            f"{ANSWERED} --eval.max_new_tokens 200 --eval.steps 10 --eval.max_samples 50",
            mean_tokens=200,
            eval_rows=500,
        ),
    ),
    (
        "goal-is-to-be-worse",
        Run("dpo", f"--train.stop_when loss>=0.5 {HELD_OUT} --eval.steps 10"),
        Run("dpo", f"--train.stop_when accuracy>=0.5 {HELD_OUT} --eval.steps 10"),
    ),
    (
        "goal-of-few-rows",
        Run("rl", f"--train.stop_when pass@1>=0.9 {HELD_OUT} --eval.steps 10", eval_rows=50),
        Run("rl", f"--train.stop_when pass@1>=0.9 {HELD_OUT} --eval.steps 10", eval_rows=100),
    ),
    (
        "evaluation-interval-beyond-run",
        Run("rl", f"{HELD_OUT} --eval.steps 50", rows=638),
        Run("rl", f"{HELD_OUT} --eval.steps 10", rows=638),
    ),
    (
        "logging-interval-beyond-run",
        Run("sft", "--logger.logging_steps 500", rows=1280),
        Run("sft", "--logger.logging_steps 5", rows=1280),
    ),
    ("nothing-to-resume-from", Run("rm", rows=160_791), Run("rm", "--ckpt.save_steps 100", rows=160_791)),
    (
        "checkpoints-not-evaluated",
        Run("rm", f"{HELD_OUT} --eval.steps 30 --ckpt.save_steps 100", rows=160_791),
        Run("rm", f"{HELD_OUT} --eval.steps 50 --ckpt.save_steps 100", rows=160_791),
    ),
    (
        "best-is-the-last",
        Run("rl", f"{HELD_OUT} --ckpt.best_metric_key reward"),
        Run("rl", f"{HELD_OUT} --ckpt.best_metric_key reward --eval.steps 10"),
    ),
    (
        "evaluation-dearer-than-training",
        Run("rl", f"{HELD_OUT} --eval.steps 1", rows=640, eval_rows=200),
        Run("rl", f"{HELD_OUT} --eval.steps 10", rows=640, eval_rows=50),
    ),
    (
        "evaluation-dearer-than-training",
        Run("rm", f"{HELD_OUT} --eval.steps 10", rows=160_791, eval_rows=8550),
        Run("rm", f"{HELD_OUT} --eval.steps 100", rows=160_791, eval_rows=8550),
    ),
    (
        "evaluation-on-training-rows",
        Run("rl", "--data.prompt_dataset rows.jsonl --eval.dataset rows.jsonl"),
        Run("rl", "--data.prompt_dataset rows.jsonl --eval.dataset rows.jsonl --eval.split test"),
    ),
    ("warmup-takes-the-run", Run("sft", "--lr_warmup_ratio 0.8"), Run("sft", "--lr_warmup_ratio 0.1")),
    ("warmup-takes-the-run", Run("rm", rows=100), Run("rm", "--lr_warmup_ratio 0", rows=100)),
    (
        "warmup-without-effect",
        Run("rl", "--actor.lr_scheduler constant --actor.lr_warmup_ratio 0.1"),
        Run("rl", "--actor.lr_scheduler constant_with_warmup --actor.lr_warmup_ratio 0.1"),
    ),
    ("no-warmup", Run("sft", "--lr_warmup_ratio 0", rows=64_000), Run("sft", rows=64_000)),
    ("batch-larger-than-data", Run("dpo", rows=100), Run("dpo", rows=1000)),
    ("short-last-step", Run("rl", rows=641), Run("rl", "--data.drop_last", rows=641)),
    ("short-last-step", Run("rm", rows=129), Run("rm", rows=192)),
    ("rows-left-out", Run("sft", rows=1_000_000), Run("sft", "--data.max_samples 5000", rows=5000)),
    (
        "answers-leave-no-room",
        Run("rl", "--rollout.max_new_tokens 1920", mean_prompt_tokens=300.0),
        Run("rl", "--rollout.max_new_tokens 1024", mean_prompt_tokens=300.0),
    ),
    ("rows-are-cut", Run("dpo", mean_tokens=490.0), Run("dpo", mean_tokens=200.0)),
    ("learning-rate-zero", Run("sft", "--adam.lr 0"), Run("sft")),
    ("learning-rate-of-full-training", Run("dpo", f"{LORA} --adam.lr 5e-7"), Run("dpo", f"{LORA} --adam.lr 5e-6")),
    ("learning-rate-of-full-training", Run("rl", LORA), Run("rl", f"{LORA} --actor.adam.lr 1e-5")),
    ("learning-rate-of-adapters", Run("sft", "--adam.lr 2e-4"), Run("sft", f"--adam.lr 2e-4 {LORA}")),
    ("lora-scale", Run("dpo", "--ds.lora.rank 64 --ds.lora.alpha 16"), Run("dpo", LORA)),
    ("lora-scale", Run("dpo", "--ds.lora.rank 8 --ds.lora.alpha 64"), Run("dpo", "--ds.lora.rank 8")),
    (
        "lora-rank-beyond-layer",
        Run("dpo", "--model.model_name_or_path google/gemma-3-1b-it --ds.lora.rank 512 --ds.lora.alpha 512"),
        Run("dpo", "--ds.lora.rank 512 --ds.lora.alpha 512"),
    ),
    ("lora-dropout-in-rl", Run("rl", f"{LORA} --ds.lora.dropout 0.05"), Run("dpo", f"{LORA} --ds.lora.dropout 0.05")),
    ("bf16-not-on-card", Run("rm", gpu="T4"), Run("rm", gpu="L4")),
    (
        "fp16-overflows",
        Run("rm", "--model.model_name_or_path google/gemma-2-2b --ds.param_dtype fp16"),
        Run("rm", "--ds.param_dtype fp16"),
    ),
    (
        "gradients-summed-in-bf16",
        Run("rm", "--train.batch_size 256 --train.micro_batch_size 1"),
        Run("rm", "--train.batch_size 256 --train.micro_batch_size 1 --ds.grad_accum_dtype fp32"),
    ),
    (
        "softcap-left-out",
        Run("rm", "--model.model_name_or_path google/gemma-2-2b --ds.attn_implementation sdpa"),
        Run("rm", "--model.model_name_or_path google/gemma-2-2b --ds.attn_implementation eager"),
    ),
    (
        "length-beyond-positions",
        Run("dpo", "--model.model_name_or_path google/gemma-2-2b --data.max_len 16384"),
        Run("dpo", "--model.model_name_or_path google/gemma-2-2b --data.max_len 8192"),
    ),
    (
        "reward-model-cuts-answers",
        Run("rl", "--reward.model_name_or_path google/gemma-2-2b --data.max_len 16384 --train.max_epochs 1"),
        Run("rl", "--reward.model_name_or_path google/gemma-2-2b --data.max_len 8192"),
    ),
    (
        "reward-of-another-vocabulary",
        Run("rl", "--reward.model_name_or_path google/gemma-2-2b"),
        Run("rl", "--reward.model_name_or_path Qwen/Qwen3-4B"),
    ),
    (
        "critic-of-another-vocabulary",
        Run("rl", "--algo.advantage.estimator gae --critic.model_name_or_path google/gemma-2-2b"),
        Run("rl", "--algo.advantage.estimator gae --critic.model_name_or_path Qwen/Qwen3-1.7B"),
    ),
    (
        "reference-of-another-vocabulary",
        Run("dpo", "--ref.model_name_or_path google/gemma-2-2b --ref.strategy model"),
        Run("dpo", "--ref.model_name_or_path Qwen/Qwen3-1.7B --ref.strategy model"),
    ),
    (
        "reference-copied-for-nothing",
        Run("dpo", f"{LORA} --ref.strategy model"),
        Run("dpo", f"{LORA} --ref.strategy base"),
    ),
    (
        "tensor-parallel-does-not-divide",
        Run("rl", "--vllm.tensor_parallel_size 3", count=8),
        Run("rl", "--vllm.tensor_parallel_size 4", count=8),
    ),
    ("sampled-from-a-cut-distribution", Run("rl", "--rollout.top_p 0.9"), Run("rl", "--rollout.temperature 0.7")),
    ("answers-nearly-alike", Run("rl", "--rollout.temperature 0.05"), Run("rl", "--rollout.temperature 0.6")),
    (
        "evaluated-answers-alike",
        Run("rl", f"{HELD_OUT} --eval.temperature 0"),
        Run("rl", f"{HELD_OUT} --eval.temperature 0 --eval.n_samples_per_prompt 1"),
    ),
    (
        "policy-never-learns",
        Run("rl", "--algo.advantage.estimator gae --critic.freezing_steps 10", rows=640),
        Run("rl", "--algo.advantage.estimator gae --critic.freezing_steps 2", rows=640),
    ),
    (
        "stale-rollouts-uncorrected",
        Run("rl", "--train.async_enable --train.async_queue_size 4", count=4),
        Run("rl", "--train.async_enable --train.async_queue_size 1", count=4),
    ),
    (
        "stale-rollouts-uncorrected",
        Run("rl", "--rollout.vllm_generate_batch_size 256"),
        Run("rl", "--rollout.vllm_generate_batch_size 256 --algo.advantage.is_correction_level token"),
    ),
    (
        "no-kl-in-a-long-run",
        Run("rl", f"--reward.model_name_or_path {MODEL} --algo.kl.init_coef 0"),
        Run("rl", f"--reward.model_name_or_path {MODEL}"),
    ),
    ("colocated-without-sleep", Run("rl", COLOCATED), Run("rl", ASLEEP)),
    (
        "colocated-engines-take-all",
        Run("rl", f"{ASLEEP} --vllm.gpu_memory_utilization 0.95"),
        Run("rl", f"{ASLEEP} --vllm.gpu_memory_utilization 0.75"),
    ),
    (
        "idle-ranks",
        Run("rl", f"{COLOCATED} --actor.num_gpus_per_node 8", rows=641, count=8),
        Run("rl", f"{COLOCATED} --actor.num_gpus_per_node 8", rows=640, count=8),
    ),
    ("idle-engines", Run("rl", "--vllm.num_engines 80", count=82), Run("rl", "--vllm.num_engines 4", count=6)),
    (
        "engines-beyond-the-policy",
        Run("rl", f"{ASLEEP} --vllm.num_engines 2", count=2),
        Run("rl", f"{ASLEEP} --vllm.num_engines 1", count=2),
    ),
    ("gpus-left-over", Run("rm", count=4), Run("rm", "--model.num_gpus_per_node 4", count=4)),
    ("stage-3-on-one-rank", Run("rm", "--ds.zero_stage 3"), Run("rm", "--ds.zero_stage 3 --model.num_gpus_per_node 2")),
    ("stage-is-raised", Run("rm", "--ds.zero_stage 0"), Run("rm", "--ds.zero_stage 0 --ds.param_dtype fp32")),
    (
        "packed-without-varlen",
        Run("rm", "--ds.packing_samples --ds.attn_implementation sdpa"),
        Run("rm", "--ds.packing_samples --ds.attn_implementation torch_varlen"),
    ),
    (
        "eager-attention-of-long-rows",
        Run("rm", "--ds.attn_implementation eager --data.max_len 8192"),
        Run("rm", "--ds.attn_implementation eager --data.max_len 1024"),
    ),
    (
        "budget-below-one-row",
        Run("rl", "--train.dynamic_batch_enable --train.max_tokens_per_gpu 1024"),
        Run("rl", "--train.dynamic_batch_enable --train.max_tokens_per_gpu 4096"),
    ),
    ("gpu-mostly-free", Run("rm", gpu=192.0), Run("rm", "--memory.auto", gpu=192.0)),
    (
        "offload-for-nothing",
        Run("rm", "--ds.adam_offload"),
        Run("rm", "--ds.adam_offload --model.model_name_or_path Qwen/Qwen3-8B"),
    ),
    (
        "activations-kept",
        Run("rm", "--train.micro_batch_size 16 --data.max_len 2048"),
        Run("rm", "--train.micro_batch_size 16 --data.max_len 2048 --model.gradient_checkpointing_enable"),
    ),
    (
        "cache-in-waves",
        Run("rl", "--data.max_len 32768 --rollout.batch_size 1024", count=3),
        Run("rl", "--data.max_len 1024", count=3),
    ),
    (
        "checkpoints-pruned-by-size",
        Run("rm", "--ckpt.max_mem 10 --ckpt.max_num 3"),
        Run("rm", "--ckpt.max_mem 100 --ckpt.max_num 3"),
    ),
    (
        "checkpoints-fill-the-disk",
        Run("rm", "--model.model_name_or_path Qwen/Qwen3-14B"),
        Run("rm", f"--model.model_name_or_path Qwen/Qwen3-14B {LORA}"),
    ),
]


@pytest.mark.parametrize(("code", "inside", "beside"), CASES, ids=[code for code, _, _ in CASES])
def test_a_trap_is_found_in_the_flags(code, inside, beside):
    assert code in inside.codes()
    assert code not in beside.codes()


def test_bf16_without_instructions_for_it(monkeypatch):
    on_cpu = "--device.type cpu --ds.attn_implementation sdpa"
    for known, found in (("bf16", True), ("amx_bf16", False)):
        flops = {"fp32": speed.CORE_FLOPS["fp32"], "bf16": speed.CORE_FLOPS[known]}
        monkeypatch.setattr(speed, "core_flops", flops.__getitem__)
        text = Run("rm", f"{on_cpu} --ds.param_dtype bf16", gpu=None).codes().get("bf16-not-of-this-cpu", "")
        assert text.endswith("multiplies matrices of float32 5 times as fast; give fp32.") == found
        assert "bf16-not-of-this-cpu" not in Run("rm", f"{on_cpu} --ds.param_dtype fp32", gpu=None).codes()
        assert "bf16-not-of-this-cpu" not in Run("rm", "--ds.param_dtype bf16").codes()


def test_every_trap_is_tested():
    elsewhere = {"bf16-not-of-this-cpu", "reference-is-the-bare-base", "gpu-nearly-full", "host-nearly-full"}
    assert {code for code, _, _ in CASES} | elsewhere == {code_of(trap) for trap in TRAPS}
    assert len(TRAPS) >= 25


def test_a_warning_says_flag_run_and_remedy():
    text = Run("rl", "--ckpt.save_steps 50", rows=638).codes()["save-interval-beyond-run"]
    assert text == "--ckpt.save_steps 50 of a run of 10 steps: no checkpoint before the end; give 5."


@pytest.mark.parametrize(("strategy", "found"), [("base", True), ("adapter", False)])
def test_the_base_is_no_reference_of_a_continued_adapter(tmp_path, strategy, found):
    shutil.copy(_config_folder(tmp_path) / "config.json", tmp_path / "config.json")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": MODEL}))
    flags = f"--model.model_name_or_path {tmp_path} {LORA} --ref.strategy {strategy}"
    assert ("reference-is-the-bare-base" in Run("dpo", flags).codes()) == found


def test_limits_that_are_almost_reached():
    run = Run("rm", gpu=None, host_gb=1000.0)
    parsed = parse("rm", BASE["rm"].split(), planning=True)
    data = DataSize(6400, None, 512, how="given")
    gpu = memory_of(setup_of("rm", parsed.config, parsed.explicit, Hardware(card_of_size(80.0), 1), data)).gpu_peak
    host = memory_of(setup_of("rm", parsed.config, parsed.explicit, Hardware(None, 0), data)).host_peak
    assert "gpu-nearly-full" in Run("rm", gpu=gpu * 1.01 / 1e9).codes()
    assert "gpu-nearly-full" not in Run("rm", gpu=gpu * 1.2 / 1e9).codes()
    assert "host-nearly-full" in Run("rm", gpu=None, count=0, host_gb=host * 1.01 / 1e9).codes()
    assert "host-nearly-full" not in run.codes()


def _config_folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 320,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
