"""The engine on a GPU: the same numbers as the plain loop on the CPU, and a sleep that frees the memory."""

from __future__ import annotations

import engine_scenarios as scenarios
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(400),
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no GPU is visible"),
]


@pytest.fixture(scope="module")
def plain_and_gpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    scenarios.build_model(folder / "model", tied=True)
    plain = scenarios.plain_training(folder / "model")
    return plain, scenarios.spawn(1, scenarios.on_a_gpu, folder, folder / "model", device="cuda")[0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_steps_equal_the_plain_loop(plain_and_gpu, stage):
    plain, trained = plain_and_gpu[0], plain_and_gpu[1][stage]
    assert trained["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    for name, tensor in trained["weights"].items():
        assert scenarios.relative_l2(tensor, plain["weights"][name]) < 1e-4, name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_sleeping_engine_leaves_the_gpu(plain_and_gpu, stage):
    measured = plain_and_gpu[1][stage]
    weights = sum(tensor.nbytes for tensor in measured["weights"].values())
    # Weights and two moments at least; what stays are the workspaces of the GPU's libraries, larger than this model.
    assert measured["awake"] - measured["asleep"] > 2.9 * weights
