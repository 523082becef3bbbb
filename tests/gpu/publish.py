"""Policy and engine on Ray: sample, compare log-probs, train, publish, three times over. A script: Ray's settings are
environment variables that must stand before it is imported.

publish.py SETTINGS: a JSON object with the fields of Scenario; the answer is the last line of the output.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

from openrlhf_ext.cluster.environment import prepare_environment


@dataclass(frozen=True)
class Scenario:
    model: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["fp32", "bf16"]
    zero_stage: Literal[0, 1, 2, 3]
    sharing: Literal["all", "none"]
    rounds: int = 3


def measure(scenario: Scenario) -> dict[str, Any]:
    """For each round the gap between the engine's and the trainer's log-probs, and how far its update moved them."""
    from openrlhf_ext.cluster.build import build_roles
    from openrlhf_ext.cluster.session import RaySettings, ray_session
    from openrlhf_ext.data.tokenizer import load_tokenizer
    from openrlhf_ext.device import choose_device

    device = choose_device(scenario.device)
    tokenizer = load_tokenizer(scenario.model)
    spec = roles_of(scenario, device)
    with ray_session(RaySettings(cpus=4, gpus=device.count)):
        roles = build_roles(spec)
        roles.policy.publish(0)
        rounds = [one_round(roles, tokenizer, version) for version in range(1, scenario.rounds + 1)]
    return {"transport": spec.engines.settings.transport, "rounds": rounds}


def roles_of(scenario: Scenario, device: Any) -> Any:
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.cluster.build import EngineRole, RolesSpec, TrainedRole
    from openrlhf_ext.engine.spec import EngineSpec
    from openrlhf_ext.models.spec import ModelSpec
    from openrlhf_ext.rollout.transfer import choose_transport
    from openrlhf_ext.rollout.vllm_engine import EngineSettings

    shared = scenario.sharing == "all"
    settings = EngineSettings(
        model=scenario.model,
        transport=choose_transport(device, colocated=shared),
        max_model_len=256,
        dtype="float32" if scenario.dtype == "fp32" else "bfloat16",
        gpu_memory_utilization=0.2,
        enforce_eager=True,
        enable_sleep=shared,
        kv_cache_gb=0.05,
    )
    trained = EngineSpec(
        zero_stage=scenario.zero_stage, dtype=scenario.dtype, lr=3e-3, lr_scheduler="constant", warmup_ratio=0.0
    )
    return RolesSpec(
        device=device,
        policy=TrainedRole(1, ModelSpec(scenario.model, dtype=scenario.dtype), trained, threads=1, sleeps=shared),
        reference=None,
        engines=EngineRole(1, settings, threads=1, bucket_bytes=60_000),
        split=SplitSettings(rows=8),
        pools={"actor": "all", "vllm": "all"} if shared else {},
    )


def one_round(roles: Any, tokenizer: Any, version: int) -> dict[str, float]:
    import torch

    from openrlhf_ext.batch.pad import token_batch
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.batch.split import train_steps
    from openrlhf_ext.batch.types import Experience
    from openrlhf_ext.trainers.objectives import PolicyObjective
    from openrlhf_ext.types import Prompt, Sampling

    texts = [f"Question {i}: what is {i} times {i * 13}?" for i in range(8)]
    prompts = [Prompt(f"p{i}", tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]
    groups = roles.generator.generate(prompts, Sampling(n=4, max_new_tokens=40, seed=version))
    batch = token_batch([rollout for group in groups for rollout in group], tokenizer.pad_token_id)
    trained = roles.policy.logprobs(batch)
    gap = (batch.sampler_logp_BA - trained)[batch.action_BA].abs()

    generator = torch.Generator().manual_seed(version)
    advantages = torch.randn(batch.action_BA.shape, generator=generator) * batch.action_BA
    columns = {"advantages": advantages, "returns": advantages, "sampler_logp": batch.sampler_logp_BA}
    steps = train_steps(Experience(batch, columns), SplitSettings(rows=8), batch_size=32, epochs=1, seed=0)
    roles.policy.update(steps, PolicyObjective())
    moved = (roles.policy.logprobs(batch) - trained)[batch.action_BA].abs()
    roles.policy.publish(version)
    assert roles.generator.version == version
    return {"gap": float(gap.mean()), "gap_max": float(gap.max()), "moved": float(moved.mean())}


if __name__ == "__main__":
    prepare_environment(None, "127.0.0.1")
    print(json.dumps(measure(Scenario(**json.loads(sys.argv[1])))))
