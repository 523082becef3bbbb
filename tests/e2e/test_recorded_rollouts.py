"""On recorded rollouts: sharding does not change a loss, and no way of cutting a batch changes its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from base_run import BaseRun
from engine_scenarios import relative_l2, spawn
from recorded import SPLITS, STEPS, one_rank, two_sharded_ranks

from openrlhf_ext.types import merge_reports

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(base: BaseRun, workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    (answer,) = spawn(1, one_rank, folder, workshop / "model", base.record.folder / "rollouts")
    return answer


def test_two_sharded_ranks_have_the_losses_of_one(alone: dict[str, Any], base: BaseRun, workshop: Path, tmp_path: Path):
    ranks = spawn(2, two_sharded_ranks, tmp_path, workshop / "model", base.record.folder / "rollouts")
    together = [merge_reports(reports) for reports in zip(*ranks, strict=True)]
    assert len(together) == len(alone["steps"]) == STEPS
    losses = []
    for sharded, whole in zip(together, alone["steps"], strict=True):
        for name in ("loss", "policy_loss", "entropy", "grad_norm", "ratio_max", "policy_kl"):
            assert sharded[name].value == pytest.approx(whole[name].value, abs=1e-5), name
        losses.append(whole["loss"].value)
    assert max(losses) - min(losses) > 1e-3, "three losses, not one"
    assert alone["steps"][-1]["ratio_max"].value > 1.01, "the policy has left the sampler"


@pytest.mark.parametrize("split", SPLITS)
def test_any_micro_batch_size_gives_the_same_gradient(split: str, alone: dict[str, Any]):
    count, gradient = alone["gradients"][split]
    whole_count, whole = alone["gradients"]["all"]
    assert whole_count == 1
    assert count > 1 or split == "all"
    assert whole.norm() > 1e-3
    assert relative_l2(gradient, whole) < 1e-6
