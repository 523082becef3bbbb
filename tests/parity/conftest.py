"""openrlhf as a reference: imported once, with a stand-in for flash-attn, or skipped with the reason."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from flash_attn_stand_in import flash_attn_stand_in


@pytest.fixture(scope="session")
def openrlhf() -> SimpleNamespace:
    """The modules of openrlhf that hold its losses, KL and estimators."""
    for package in ("openrlhf", "deepspeed", "ray", "einops", "pylatexenc", "torchdata"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"openrlhf 0.11.2 is the reference, and {package} is not installed")
    with nullcontext() if importlib.util.find_spec("flash_attn") else flash_attn_stand_in():
        return SimpleNamespace(
            loss=importlib.import_module("openrlhf.models.loss"),
            ops=importlib.import_module("openrlhf.models.utils"),
            maker=importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker"),
            Experience=importlib.import_module("openrlhf.trainer.ppo_utils.experience").Experience,
        )
