"""After a publish the engine samples from the trainer's weights: by IPC on one GPU, by broadcast over two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from served_model import build_model

SCRIPT = Path(__file__).with_name("publish.py")
ROOT = Path(__file__).resolve().parents[2]

# Mean and largest difference in nats. float32: the engine's attention may round to TF32.
TOLERANCE = {"fp32": (2e-3, 5e-2), "bf16": (5e-2, 1.0)}


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    build_model(folder / "model", tied=True)
    asked = json.dumps({"model": str(folder / "model"), "device": "cuda", **settings})
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), asked], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(answer: dict[str, Any], dtype: str) -> None:
    mean, largest = TOLERANCE[dtype]
    for measured in answer["rounds"]:
        assert measured["moved"] > 2 * mean, "an engine with old weights would be seen"
        assert measured["gap"] < mean and measured["gap_max"] < largest, answer["rounds"]


@pytest.mark.parametrize(("dtype", "stage"), [("fp32", 3), ("bf16", 2)])
def test_by_ipc_on_one_gpu(tmp_path: Path, dtype: str, stage: int):
    answer = run(tmp_path, dtype=dtype, zero_stage=stage, sharing="all")
    assert answer["transport"] == "ipc"
    check(answer, dtype)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_by_broadcast_over_two_gpus(tmp_path: Path):
    answer = run(tmp_path, dtype="fp32", zero_stage=0, sharing="none")
    assert answer["transport"] == "broadcast"
    check(answer, "fp32")
