"""One update of trl's own trainers, without their constructors: given log-probs stand in for their forward passes.

From rewards and log-probs on, the code that runs is theirs: advantages, importance ratios and loss. A trainer is
made bare and told what it reads; what it would ask of models, engines and data (generation, rewards, log-probs) is
given.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from parity_tensors import GROUP, A, B
from torch import Tensor

ONE_PROCESS = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    sync_gradients=True,
    gather=lambda x: x,
    reduce=lambda x, reduction: x,
)
ARGS = {
    "per_device_train_batch_size": B,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing_kwargs": None,
    "use_bias_correction_kl": False,
    "delta": None,
}
TRAINER = {
    "accelerator": ONE_PROCESS,
    "current_gradient_accumulation_steps": 1,
    "num_iterations": 2,  # so that the old log-probs are asked for
    "num_generations": GROUP,
    "max_completion_length": 2 * A,
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "entropy_coef": 0.0,
    "_entropy_bonus_enabled": False,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": None,
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": None,
    "multi_objective_aggregation": "sum_then_normalize",
    "scale_rewards": "none",
    "normalize_advantages": False,
    "reward_clip_range": None,
    "reward_func_names": ["reward"],
    "aux_loss_enabled": False,
    "environment_factories": None,
    "environments": None,
    "tools": None,
    "mask_truncated_completions": False,
    "pad_to_multiple_of": None,
    "log_multimodal": False,
}


def bare_trainer(kind: type, columns: SimpleNamespace, **settings: Any) -> Any:
    """A trainer of theirs that knows these settings and samples, scores and evaluates by the given columns."""
    args = SimpleNamespace(**{name: settings.pop(name, default) for name, default in ARGS.items()})
    assert settings.keys() <= TRAINER.keys(), "a setting that they do not read"
    trainer = object.__new__(kind)
    trainer.__dict__.update(TRAINER | settings)
    trainer.args = args
    trainer.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    trainer.ref_model = object()
    trainer._tokenizer = SimpleNamespace(pad_token_id=0)
    trainer.reward_weights = torch.ones(1)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._logs = {name: [] for name in ("prompt", "completion", "advantages")}
    trainer._logs |= {"rewards": defaultdict(list), "extra": defaultdict(list)}
    trainer._pending_extra_logs, trainer._pending_metrics = {}, {}
    trainer._calculate_rewards = lambda *_: columns.scores[:, None]
    return trainer


def samples_of(columns: SimpleNamespace) -> tuple[list[list[int]], ...]:
    """Prompts and completions of the columns' lengths, which completion tokens are actions, and their log-probs."""
    lengths = columns.length.tolist()
    masks = [row[:n].long().tolist() for row, n in zip(columns.action, lengths, strict=True)]
    sampled = [row[:n].tolist() for row, n in zip(columns.sampler_logp, lengths, strict=True)]
    return [[1, 2]] * B, [[3] * n for n in lengths], masks, sampled


def grpo_update(trl: SimpleNamespace, columns: SimpleNamespace, **settings: Any) -> tuple[Tensor, Tensor]:
    """The advantages (B,) and the loss of one update of their GRPOTrainer."""
    trainer = bare_trainer(trl.GRPOTrainer, columns, **settings)
    prompts, completions, masks, sampled = samples_of(columns)
    texts = ["text"] * B
    trainer._generate = lambda _: (prompts, completions, masks, texts, sampled, {}, None, None)
    before = {id(trainer.model): columns.old_logp, id(trainer.ref_model): columns.ref_logp}
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (before[id(model)], None, None)
    inputs = trainer._generate_and_score_completions([{"prompt": "prompt"}] * B)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (columns.logp, columns.entropy, None)
    return inputs["advantages"], trainer._compute_loss(trainer.model, inputs)


def rloo_advantages(trl: SimpleNamespace, columns: SimpleNamespace, **settings: Any) -> Tensor:
    """The advantages (B,) of one update of their RLOOTrainer; it knows no gaps between actions."""
    trainer = bare_trainer(trl.RLOOTrainer, columns, **settings)
    prompts, completions, _, _ = samples_of(columns)
    trainer._generate = lambda _: (prompts, completions, ["text"] * B)
    before = {id(trainer.model): columns.old_logp, id(trainer.ref_model): columns.ref_logp}
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (before[id(model)], None, None)
    return trainer._generate_and_score_completions([{"prompt": "prompt"}] * B)["advantages"]
