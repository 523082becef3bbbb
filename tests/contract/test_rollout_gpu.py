"""The engine on a GPU that it shares with the trainer: weights by handle, and sleep between two steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from served_model import buckets_of, perturb, reference_logprobs, start_served

from openrlhf_ext.device import choose_device
from openrlhf_ext.rollout.transfer import choose_transport, make_sender
from openrlhf_ext.rollout.vllm_engine import EngineSettings, GenerateRequest
from openrlhf_ext.types import Prompt, Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.timeout(600)
def test_sleeping_and_waking_around_an_update(tmp_path: Path):
    device = choose_device("cuda")
    transport = choose_transport(device, colocated=True)
    assert transport == "ipc"
    served = start_served(
        tmp_path,
        True,
        device,
        lambda model: EngineSettings(
            model=model,
            transport=transport,
            max_model_len=384,
            dtype="float32",
            gpu_memory_utilization=0.2,
            enforce_eager=True,
            enable_sleep=True,
        ),
    )
    model, engine = served.model.to("cuda"), served.engine
    served = dataclasses.replace(served, model=model)
    tokens = tuple(served.tokenizer("What is two times three?").input_ids)
    asked = [GenerateRequest(Prompt("p", tokens, ""), k, Sampling(max_new_tokens=40, seed=1)) for k in range(8)]
    before = engine.call("generate", asked)
    assert engine.call("generate", asked[3:]) == before[3:]
    sender = make_sender(transport)
    for version in range(1, 4):
        free_awake = torch.cuda.mem_get_info()[0]
        engine.call("sleep", 2)
        assert torch.cuda.mem_get_info()[0] > free_awake, "sleeping gives memory back"
        perturb(model, seed=version)
        engine.call("wake", ["weights"])
        engine.call("begin_update")
        for bucket in buckets_of(model, 3):
            sender.send(bucket, lambda payload: engine.start("load_bucket", payload))
        engine.call("end_update", version)
        engine.call("wake", ["kv_cache"])
        given = [rollout.token_ids.tolist() for rollout in engine.call("generate", asked)]
        for sequence, found in zip(given, engine.call("logprobs", given), strict=True):
            expected = reference_logprobs(model, sequence)
            # The GPU's matrix products are TF32 or reordered, so less exact than on a CPU.
            torch.testing.assert_close(torch.tensor(found), expected, atol=2e-2, rtol=0)
    sender.close()
    engine.close()
