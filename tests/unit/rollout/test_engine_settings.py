"""What can be known of an engine without starting one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from openrlhf_ext.device import Device
from openrlhf_ext.errors import DataError
from openrlhf_ext.rollout.vllm_engine import EngineSettings, GenerateRequest, VllmEngine, engine_environment
from openrlhf_ext.types import Prompt, Sampling

CPU = Device("cpu", 0, frozenset({"bf16"}))
GPU = Device("cuda", 1, frozenset({"sleep", "ipc"}))


def request(prompt_id: str = "a", sample: int = 0, seed: int = 7) -> GenerateRequest:
    return GenerateRequest(Prompt(prompt_id, (1, 2), ""), sample, Sampling(seed=seed))


def test_a_seed_for_each_prompt_sample_and_step():
    seeds = [request(p, k, s).seed for p in ("a", "b") for k in (0, 1) for s in (7, 8)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == request().seed
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_environment_of_each_device():
    cpu, gpu = engine_environment(CPU, threads=3), engine_environment(GPU)
    assert cpu["OMP_NUM_THREADS"] == "3"
    assert cpu["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in gpu
    assert "OMP_NUM_THREADS" not in gpu
    assert cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == gpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_a_folder_without_a_model_is_refused_before_vllm_is_imported(tmp_path):
    settings = EngineSettings(model=str(tmp_path), transport="object_store", max_model_len=64)
    with pytest.raises(DataError, match=r"config\.json"):
        VllmEngine(settings, CPU)


def test_describing_an_engine_does_not_import_vllm():
    code = "import sys, openrlhf_ext.rollout.vllm_engine; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
