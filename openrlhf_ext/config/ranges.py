"""The range of each flag that has one, with its words. (A NaN is in no range.)"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Range = tuple[Callable[[Any], bool], str]

_AT_LEAST_1: Range = (lambda v: v >= 1, "1 or more")
_AT_LEAST_0: Range = (lambda v: v >= 0, "0 or more")
_FINITE_AT_LEAST_0: Range = (lambda v: 0 <= v < math.inf, "0 or more")
_POSITIVE: Range = (lambda v: 0 < v < math.inf, "above 0")
_STEPS: Range = (lambda v: v == -1 or v >= 1, "1 or more, or -1 for never")
_PART: Range = (lambda v: 0 <= v <= 1, "from 0 to 1")
_POSITIVE_PART: Range = (lambda v: 0 < v <= 1, "above 0 and at most 1")
_LOW_HIGH: Range = (lambda v: v[0] < v[1], "two numbers, the lower one first")
_BETAS: Range = (lambda v: all(0 <= beta < 1 for beta in v), "two numbers from 0 to below 1")

RANGES: Mapping[str, Range] = {
    "actor.num_nodes": _AT_LEAST_1,
    "actor.num_gpus_per_node": _AT_LEAST_1,
    "ref.num_nodes": _AT_LEAST_1,
    "ref.num_gpus_per_node": _AT_LEAST_1,
    "critic.num_nodes": _AT_LEAST_1,
    "critic.num_gpus_per_node": _AT_LEAST_1,
    "critic.value_clip": _POSITIVE,
    "critic.freezing_steps": (lambda v: v >= -1, "a number of rollout steps (0 or -1: none)"),
    "reward.num_nodes": _AT_LEAST_1,
    "reward.num_gpus_per_node": _AT_LEAST_1,
    "model.num_nodes": _AT_LEAST_1,
    "model.num_gpus_per_node": _AT_LEAST_1,
    "vllm.num_engines": _AT_LEAST_1,
    "vllm.tensor_parallel_size": _AT_LEAST_1,
    "vllm.gpu_memory_utilization": _POSITIVE_PART,
    "vllm.sync_bucket_mb": _AT_LEAST_1,
    "vllm.kv_cache_gb": _POSITIVE,
    "vllm.threads": _AT_LEAST_1,
    "student.num_nodes": _AT_LEAST_1,
    "student.num_gpus_per_node": _AT_LEAST_1,
    "student.temperature": _POSITIVE,
    "student.solution_coefs": (lambda v: all(map(math.isfinite, v)), "finite numbers"),
    "student.divergence_coefs": (lambda v: all(map(math.isfinite, v)), "finite numbers"),
    "student.missing_tags": (math.isfinite, "a finite number"),
    "ref.sync_steps": _AT_LEAST_0,
    "ref.sync_mixup": _PART,
    "agent.timeout_s": _POSITIVE,
    "agent.max_turns": _AT_LEAST_1,
    "agent.max_concurrent": _AT_LEAST_1,
    "judge.num_engines": _AT_LEAST_1,
    "judge.tensor_parallel_size": _AT_LEAST_1,
    "judge.gpu_memory_utilization": _POSITIVE_PART,
    "judge.max_new_tokens": _AT_LEAST_1,
    "judge.max_len": (lambda v: v >= 2, "2 or more"),
    "judge.max_pairs": _AT_LEAST_1,
    "judge.n_samples": _AT_LEAST_1,
    "judge.temperature": (lambda v: 0 <= v <= 2, "from 0 to 2"),
    "judge.kv_cache_gb": _POSITIVE,
    "judge.threads": _AT_LEAST_1,
    "judge.concurrency": _AT_LEAST_1,
    "judge.timeout_s": _POSITIVE,
    "judge.max_retries": _AT_LEAST_0,
    "calibrate.threshold": _POSITIVE_PART,
    "calibrate.repeats": _AT_LEAST_1,
    "calibrate.repeat_temperature": (lambda v: 0 < v <= 2, "above 0 and at most 2"),
    "calibrate.repeat_rows": _AT_LEAST_1,
    "calibrate.order_rows": _AT_LEAST_0,
    "calibrate.resamples": (lambda v: v >= 100, "100 or more"),
    "calibrate.shown": _AT_LEAST_0,
    "model.head_dim": _AT_LEAST_1,
    "model.temperature": _POSITIVE,
    "model.centring_coef": _FINITE_AT_LEAST_0,
    "model.beta": _POSITIVE,
    "model.label_smoothing": (lambda v: 0 <= v < 0.5, "from 0 to below 0.5"),
    "model.nll_loss_coef": _FINITE_AT_LEAST_0,
    "train.length_group_steps": _AT_LEAST_1,
    "train.batch_size": _AT_LEAST_1,
    "train.micro_batch_size": _AT_LEAST_1,
    "train.max_epochs": _AT_LEAST_1,
    "train.num_episodes": _AT_LEAST_1,
    "train.max_tokens_per_gpu": _AT_LEAST_1,
    "train.async_queue_size": _AT_LEAST_1,
    "train.seed": _AT_LEAST_0,
    "rollout.batch_size": _AT_LEAST_1,
    "rollout.micro_batch_size": _AT_LEAST_1,
    "rollout.n_samples_per_prompt": _AT_LEAST_1,
    "rollout.max_new_tokens": _AT_LEAST_1,
    "rollout.max_tokens_per_gpu": _AT_LEAST_1,
    "rollout.vllm_generate_batch_size": _AT_LEAST_1,
    # Log-probs are those of the tempered distribution; vLLM takes at most 2.
    "rollout.temperature": (lambda v: 0 < v <= 2, "above 0 and at most 2"),
    "rollout.top_p": _POSITIVE_PART,
    "rollout.top_k": (lambda v: v == -1 or v >= 1, "1 or more, or -1 for all tokens"),
    "rollout.min_p": _PART,
    "data.max_len": (lambda v: v >= 2, "2 or more"),
    "data.max_samples": _AT_LEAST_1,
    "data.dataloader_num_workers": _AT_LEAST_0,
    "eval.steps": _STEPS,
    "eval.temperature": (lambda v: 0 <= v <= 2, "from 0 to 2"),
    "eval.n_samples_per_prompt": _AT_LEAST_1,
    "ckpt.save_steps": _STEPS,
    "ckpt.max_num": _AT_LEAST_1,
    "ckpt.max_mem": (lambda v: v > 0, "above 0"),
    "logger.logging_steps": _AT_LEAST_1,
    "ray.dashboard_port": (lambda v: 1 <= v <= 65535, "a port, 1 to 65535"),
    "reward.timeout_s": _POSITIVE,
    "reward.max_retries": _AT_LEAST_0,
    "reward.weights": (lambda v: all(map(math.isfinite, v)), "finite numbers"),
    "reward.http_batch_size": _AT_LEAST_1,
    "reward.http_concurrency": _AT_LEAST_1,
    "reward.http_failures": _AT_LEAST_1,
    "reward.http_cooldown_s": _FINITE_AT_LEAST_0,
    "reward.length_range": (lambda v: 0 <= v[0] <= v[1] and v[1] >= 1, "two numbers of tokens, the lower one first"),
    "reward.verify_timeout_s": _POSITIVE,
    "reward.clip_range": _LOW_HIGH,
    "reward.overlong_buffer_len": _POSITIVE,
    "reward.overlong_penalty_factor": _FINITE_AT_LEAST_0,
    "reward.stop_properly_penalty_coef": (
        lambda v: -math.inf < v <= 1,
        "from 0 to 1, a factor, or below 0, a reward in place of the answer's own",
    ),
    "algo.advantage.gamma": _PART,
    "algo.advantage.lambd": _PART,
    "algo.kl.init_coef": _FINITE_AT_LEAST_0,
    "algo.kl.target": _POSITIVE,
    "algo.kl.horizon": _AT_LEAST_1,
    "algo.dynamic_filtering_range": _LOW_HIGH,
    "actor.eps_clip": _POSITIVE,
    "actor.eps_clip_low_high": (lambda v: all(0 < eps < math.inf for eps in v), "two numbers above 0"),
    "actor.dual_clip": (lambda v: 1 < v < math.inf, "above 1"),
    "actor.entropy_coef": (math.isfinite, "a finite number"),
    "ds.zpg": _AT_LEAST_1,
    "ds.logprob_chunk_size": _AT_LEAST_1,
    "ds.lora.rank": _AT_LEAST_0,
    "ds.lora.alpha": _AT_LEAST_1,
    "ds.lora.target_modules": (len, "all-linear, or names of modules"),
    "ds.lora.dropout": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "port": (lambda v: 0 <= v <= 65535, "a port, 1 to 65535, or 0 for any free one"),
    "batch_size": _AT_LEAST_1,
    "limits.request_mb": _AT_LEAST_1,
    "limits.waiting_mb": _AT_LEAST_1,
    "ds.value_head_prefix": (lambda v: v.isidentifier(), "the name of a module"),
} | {
    prefix + path: limits
    for prefix in ("", "actor.", "critic.")
    for path, limits in {
        "adam.lr": _FINITE_AT_LEAST_0,
        "adam.betas": _BETAS,
        "adam.eps": _POSITIVE,
        "adam.weight_decay": _FINITE_AT_LEAST_0,
        "lr_warmup_ratio": _PART,
        "min_lr_ratio": _PART,
        "max_norm": _FINITE_AT_LEAST_0,
    }.items()
}

# transformers' schedules that need nothing but the numbers of steps and the flags there are.
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)
