"""openrlhf and trl as references: imported once, or skipped with the reason; and the tensors both sides see."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from flash_attn_stand_in import flash_attn_stand_in
from parity_tensors import A, B, float64


def _needs(reference: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{reference} is the reference, and {package} is not installed")


@pytest.fixture(scope="session")
def openrlhf() -> SimpleNamespace:
    """The modules of openrlhf that hold its losses, KL, estimators and penalties, with a stand-in for flash-attn."""
    _needs("openrlhf 0.11.2", "openrlhf", "deepspeed", "ray", "einops", "pylatexenc", "torchdata")
    with nullcontext() if importlib.util.find_spec("flash_attn") else flash_attn_stand_in():
        return SimpleNamespace(
            loss=importlib.import_module("openrlhf.models.loss"),
            ops=importlib.import_module("openrlhf.models.utils"),
            maker=importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker"),
            length=importlib.import_module("openrlhf.trainer.ppo_utils.length_penalty"),
            kl=importlib.import_module("openrlhf.trainer.ppo_utils.kl_controller"),
            Experience=importlib.import_module("openrlhf.trainer.ppo_utils.experience").Experience,
        )


@pytest.fixture(scope="session")
def trl() -> SimpleNamespace:
    """The trainers of trl whose losses and advantages are also ours."""
    _needs("trl", "trl", "accelerate", "datasets")
    return SimpleNamespace(
        GRPOTrainer=importlib.import_module("trl.trainer.grpo_trainer").GRPOTrainer,
        RLOOTrainer=importlib.import_module("trl.trainer.rloo_trainer").RLOOTrainer,
    )


@pytest.fixture
def columns() -> SimpleNamespace:
    """Masks with gaps, ends at different lengths, log-probs and advantages that are zero off actions."""
    generator = torch.Generator().manual_seed(5)
    length_B = torch.randint(2, A + 1, (B,), generator=generator)
    length_B[0] = A
    action_BA = (torch.arange(A) < length_B[:, None]) & (torch.rand(B, A, generator=generator) < 0.8)
    action_BA[torch.arange(B), length_B - 1] = True
    names = ["logp", "old_logp", "ref_logp"]
    drawn = {name: (0.4 * float64(generator, B, A) - 2) * action_BA for name in names}
    drawn["sampler_logp"] = (drawn["old_logp"] + 0.4 * float64(generator, B, A)) * action_BA
    drawn["advantages"] = float64(generator, B, A) * action_BA
    for name in ("values", "old_values", "returns"):
        drawn[name] = float64(generator, B, A) * action_BA
    entropy_BA = torch.rand(B, A, generator=generator, dtype=torch.float64) * action_BA
    return SimpleNamespace(
        **drawn, entropy=entropy_BA, action=action_BA, scores=2 * float64(generator, B), length=length_B
    )
