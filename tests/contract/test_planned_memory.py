"""The planner's peak of live tensors is the tracked one: some of the grid of benchmarks/memory_cpu.py, as it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = (
    "llama: policy, entropy",
    "mistral: full, re-entrant",
    "qwen2: LoRA, dropout, checkpointing",
    "qwen3: QLoRA pairs",
    "gemma2: full, packed",
    "gemma3_text: preference model",
    "gemma3_text: critic",
)
WORST = 0.06


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("memory") / "compared.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory_cpu.py"), "--json", str(out), "--only", *CHOSEN]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {one["name"]: one for one in json.loads(out.read_text(encoding="utf-8"))["configurations"]}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_predicted_peak_is_the_tracked_one(compared, name):
    one = compared[name]
    assert one["tracked"] > one["rest"] > 0, "something came and went"
    assert one["predicted"] == pytest.approx(one["tracked"], rel=WORST)
