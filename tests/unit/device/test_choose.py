from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch

from openrlhf_ext.device import Device, attention, choose, choose_device, honour
from openrlhf_ext.errors import ConfigError, ResourceError

CPU = Device("cpu", 0, frozenset({"bf16"}))
GPU = Device("cuda", 2, frozenset({"sleep", "ipc", "bf16", "flash_attention"}))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    choose._say_once.cache_clear()
    choose.visible_gpus.cache_clear()


def _pretend_gpus(monkeypatch, count, capability):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    major, minor = capability
    line = f"{major} {minor} {80 << 30} NVIDIA A100-SXM4-80GB"
    monkeypatch.setattr(choose, "_PROBE", f"print('{line}\\n' * {count}, end='')")


def test_an_explicit_cpu_never_touches_cuda():
    code = """
import json, os
from openrlhf_ext.device import choose_device
device = choose_device("cpu")
device.select(0), device.current(), device.empty_cache()
device.synchronize()
import torch
visible = os.environ["CUDA_VISIBLE_DEVICES"]
print(json.dumps([device.kind, device.count, visible, torch.cuda.is_initialized(), torch.cuda.is_available()]))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(answer.stdout) == ["cpu", 0, "", False, False]


def test_an_explicit_cpu_does_not_even_count_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("asked for GPUs"))
    assert choose_device("cpu").kind == "cpu"


def test_cuda_without_a_gpu_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match=r"no GPU is visible.*--device\.type cpu"):
        choose_device("cuda")


def test_an_unknown_word_is_refused():
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        choose_device("tpu")


def test_auto_takes_the_gpus_there_are(monkeypatch):
    _pretend_gpus(monkeypatch, 2, (9, 0))
    device = choose_device("auto")
    assert (device.kind, device.count, device.collective) == ("cuda", 2, "nccl")
    assert {"sleep", "ipc", "bf16"} <= device.capabilities
    assert device.torch_device(1) == torch.device("cuda:1")
    assert "CUDA_VISIBLE_DEVICES" not in device.environment()


def test_auto_falls_back_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    device = choose_device("auto")
    assert (device.kind, device.collective, device.torch_device(1)) == ("cpu", "gloo", torch.device("cpu"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and os.environ["DS_ACCELERATOR"] == "cpu"
    assert not device.can("sleep") and not device.can("ipc")


def test_an_old_gpu_has_no_bf16(monkeypatch):
    _pretend_gpus(monkeypatch, 1, (7, 5))
    assert not choose_device("cuda").can("bf16")


def test_a_broken_driver_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(choose, "_PROBE", "raise RuntimeError('no driver')")
    with pytest.raises(ResourceError, match="no driver"):
        choose_device("auto")


def test_a_device_travels_to_other_processes():
    assert pickle.loads(pickle.dumps(GPU)) == GPU


def test_a_default_is_replaced_and_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        assert attention(CPU, "flash_attention_2", explicit=False) == "sdpa"
        assert attention(CPU, "flash_attention_2", explicit=False) == "sdpa"
    assert len(caplog.records) == 1 and "using sdpa" in caplog.text


def test_the_same_asked_for_is_refused():
    with pytest.raises(ConfigError, match=r"--ds\.attn_implementation flash_attention_2 .* sdpa"):
        attention(CPU, "flash_attention_2", explicit=True)


def test_what_the_device_can_do_is_kept():
    assert attention(GPU, "flash_attention_2", explicit=True) == "flash_attention_2"
    assert attention(CPU, "eager", explicit=True) == "eager"
    assert honour(CPU, "bf16", "bf16", "fp32", explicit=True, flag="--ds.param_dtype") == "bf16"
