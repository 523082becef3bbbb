"""Moments of deep models are extrapolated from shallow ones; what goes by groups of fixed size is not."""

from __future__ import annotations

import pytest

from openrlhf_ext.plan import moments
from openrlhf_ext.plan.shapes import find_shape
from openrlhf_ext.plan.types import ModelRun, Pass


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_takes_what_it_takes_of_the_whole_model(stage: int, ranks: int):
    run = ModelRun(
        "policy",
        find_shape("Qwen/Qwen3-4B"),
        "causal_lm",
        trainable=True,
        ranks=ranks,
        pool="all",
        dtype="bf16" if stage else "fp32",
        zero_stage=stage,  # type: ignore[arg-type]
    )
    one = Pass(rows=1, length=256, tokens=256, selected=128, backward=True)
    found, whole = (made(run, one, False)["step, optimizer"] for made in (moments._moments, moments._simulated))
    assert found["optimizer step"] == whole["optimizer step"]
    if stage == 3:
        # Of 4.02e9 numbers on one rank, and 1.006e9 on each of four, 1e9 at a time: flat in bf16 and in float32.
        assert found["optimizer step"] == 6_000_000_000


def test_a_frozen_model_has_no_bucket():
    run = ModelRun(
        "reference", find_shape("Qwen/Qwen3-0.6B"), "causal_lm", trainable=False, ranks=2, pool="all", zero_stage=3
    )
    asked = Pass(rows=2, length=512, tokens=1024, selected=700, backward=False)
    assert all(kinds.get("gradient bucket", 0) == 0 for kinds in moments._moments(run, asked, False).values())
