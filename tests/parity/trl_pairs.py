"""The preference losses of trl's own trainers, without their constructors: given log-probs and scores for models."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ONE_PROCESS = SimpleNamespace(
    device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
)


def bare_trainer(kind: type, **known: Any) -> Any:
    trainer = object.__new__(kind)
    trainer.__dict__.update(known, accelerator=ONE_PROCESS, model=SimpleNamespace(training=True))
    trainer._metrics = {"train": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    return trainer


def dpo_loss(
    kind: type, logp_BA: Tensor, ref_logp_BA: Tensor, action_BA: Tensor, **settings: Any
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of their DPOTrainer for rows that are the chosen answers, then the rejected ones.

    Log-probs are zero off actions, as their fused head gives them.
    """
    trainer = bare_trainer(
        kind,
        beta=settings["beta"],
        loss_types=settings["loss_types"],
        loss_weights=settings.get("loss_weights", [1.0]),
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        aux_loss_enabled=False,
    )
    nothing_BA = torch.zeros_like(logp_BA)
    output = SimpleNamespace(log_probs=logp_BA, entropy=nothing_BA, mean_logits=nothing_BA, is_top1=nothing_BA.bool())
    mask_BT = torch.nn.functional.pad(action_BA.long(), (1, 0))
    chosen_P, rejected_P = ref_logp_BA.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask_BT),
        "attention_mask": torch.ones_like(mask_BT),
        "completion_mask": mask_BT,
        "ref_chosen_logps": chosen_P,
        "ref_rejected_logps": rejected_P,
    }
    loss = trainer._compute_loss(lambda **_: output, inputs, return_outputs=False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items() if isinstance(values, list)}


def reward_loss(
    kind: type, score_B: Tensor, margin_P: Tensor | None, centring: float | None
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of their RewardTrainer for the scores of the chosen answers, then of the rejected ones."""
    trainer = bare_trainer(kind, args=SimpleNamespace(center_rewards_coefficient=centring))
    inputs = {"attention_mask": torch.ones(len(score_B), 1)} | ({} if margin_P is None else {"margin": margin_P})
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=score_B[:, None]), inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items() if isinstance(values, list)}
