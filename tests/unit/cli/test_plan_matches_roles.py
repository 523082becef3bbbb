"""The planner restates, without torch, what the commands start: both are made from the same flags and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_ext.cli.rl_roles import Schedule, roles_spec
from openrlhf_ext.cli.specs import engine_spec, model_spec
from openrlhf_ext.cluster.build import ROLES, EngineRole, JudgeRole, RolesSpec, TrainedRole
from openrlhf_ext.cluster.placement import bundles_of
from openrlhf_ext.config import Parsed, parse
from openrlhf_ext.device import Device
from openrlhf_ext.engine.deepspeed_config import deepspeed_config, effective_stage
from openrlhf_ext.plan.layout import demands_of
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.types import SCORERS, Card, DataSize, EngineRun, Hardware, ModelRun, Setup

CARD = Card("made up", 80_000_000_000, 500_000_000, 1e15, 3e12, 4e11)
GPUS = Device("cuda", 8, frozenset({"sleep", "ipc", "bf16", "flash_attention", "varlen", "4bit", "8bit"}))
TWO = Device("cuda", 2, frozenset({"sleep", "ipc", "bf16", "flash_attention", "varlen", "4bit", "8bit"}))
CPU = Device("cpu", 0, frozenset({"bf16", "4bit", "8bit"}))
DEVICES = {"8 GPUs": GPUS, "2 GPUs": TWO, "a CPU": CPU}
MODEL = "--actor.model_name_or_path Qwen/Qwen3-0.6B"
REWARD_MODEL = "--reward.model_name_or_path Qwen/Qwen3-1.7B"
JUDGE = "--judge.model_name_or_path Qwen/Qwen3-4B"
STUDENT = "--student.model_name_or_path Qwen/Qwen3-1.7B --rollout.temperature 0.7"
REINFORCE = "--algo.advantage.estimator reinforce"

VARIANTS = {
    "defaults": "",
    "no critic": REINFORCE,
    "no reference": f"{REINFORCE} --algo.kl.init_coef 0",
    "reward model alone": REWARD_MODEL,
    "critic of its own": f"{REWARD_MODEL} --critic.model_name_or_path Qwen/Qwen3-4B",
    "colocated": "--train.colocate_all",
    "judge": f"{REINFORCE} {JUDGE} --judge.num_engines 2 --judge.tensor_parallel_size 2",
    "judge, colocated and asleep": f"{REINFORCE} --train.colocate_all {JUDGE} --judge.enable_sleep",
    "judge, colocated and ahead": f"{REINFORCE} --train.colocate_all --train.async_enable {JUDGE}",
    "student, colocated": f"{REINFORCE} --train.colocate_all {STUDENT}",
    "student offloaded, with a judge": f"{REINFORCE} {STUDENT} --student.offload {JUDGE} --judge.enforce_eager",
    "asleep": f"--train.colocate_all --vllm.enable_sleep --ds.enable_sleep {REWARD_MODEL}",
    "engines asleep": "--train.colocate_all --vllm.enable_sleep",
    "ahead": f"--train.async_enable --vllm.num_engines 2 {REWARD_MODEL}",
    "ahead, the others colocated": f"--train.async_enable --train.colocate_all {REWARD_MODEL}",
    "pairs": f"--train.colocate_actor_ref --train.colocate_critic_reward {REWARD_MODEL}",
    "two ranks": "--train.colocate_all --actor.num_gpus_per_node 2 --vllm.num_engines 2",
    "two machines": f"{REINFORCE} --actor.num_nodes 2 --ref.num_nodes 2 --ray.address auto",
    "tensor parallel": f"{REINFORCE} --vllm.tensor_parallel_size 2 --vllm.gpu_memory_utilization 0.5",
    "stage 0": f"{REINFORCE} --ds.zero_stage 0",
    "float32": f"{REINFORCE} --ds.zero_stage 0 --ds.param_dtype fp32",
    "float32 offloaded": f"{REINFORCE} --ds.zero_stage 0 --ds.param_dtype fp32 --ds.adam_offload",
    "float32 sums": f"{REINFORCE} --ds.zero_stage 1 --ds.grad_accum_dtype fp32",
    "8 bits": f"{REINFORCE} --actor.adam.eight_bit",
    "8 bits of the critic": "--critic.adam.eight_bit",
    "float16": f"{REINFORCE} --ds.zero_stage 1 --ds.param_dtype fp16",
    "stage 3": f"--ds.zero_stage 3 --ds.zpg 2 --ds.overlap_comm --ref.offload --reward.offload {REWARD_MODEL}",
    "offloaded reference": f"{REINFORCE} --ds.zero_stage 2 --ref.offload --ds.adam_offload",
    "adapters": f"{REINFORCE} --ds.lora.rank 16 --ds.lora.alpha 32 --ds.lora.target_modules q_proj v_proj",
    "quantised, with a critic": f"--ds.lora.rank 16 --ds.load_in_4bit --ds.zero_stage 2 {REWARD_MODEL}",
    "8-bit base, with a critic": f"--ds.lora.rank 16 --ds.load_in_8bit --ds.zero_stage 2 {REWARD_MODEL}",
    "checkpointing": f"{REINFORCE} --actor.gradient_checkpointing_enable --ds.packing_samples",
    "reentrant": f"{REINFORCE} --actor.gradient_checkpointing_enable --actor.gradient_checkpointing_reentrant",
    "chunks": f"{REINFORCE} --ds.logprob_chunk_size 256 --ds.attn_implementation sdpa",
    "micro-batches": f"{REINFORCE} --train.micro_batch_size 4 --rollout.micro_batch_size 8",
    "token budget": f"{REINFORCE} --train.dynamic_batch_enable --train.max_tokens_per_gpu 8192",
    "two token budgets": f"{REINFORCE} --train.dynamic_batch_enable --rollout.max_tokens_per_gpu 32768",
}


def hardware(device: Device, nodes: int = 1) -> Hardware:
    return Hardware(CARD if device.count else None, device.count, nodes)


def planned(parsed: Parsed, device: Device) -> Setup:
    data = DataSize(rows=10_000, mean_tokens=300.0, max_tokens=parsed.config.data.max_len)
    return setup_of("rl", parsed.config, parsed.explicit, hardware(device), data)


@pytest.fixture
def make(tmp_path: Path):
    (tmp_path / "reward.py").write_text("def reward_func(queries, prompts, labels): ...")

    def make(flags: str, device: Device) -> tuple[RolesSpec, Setup]:
        needed = f"{MODEL} --data.prompt_dataset d"
        if flags != REWARD_MODEL:
            needed += f" --reward.remote_url {tmp_path}/reward.py"
        parsed = parse("rl", [*needed.split(), *flags.split()])
        return roles_spec(parsed, device, Schedule(1, 1)), planned(parsed, device)

    return make


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
def test_roles_are_those_that_start(make, flags: str, device: Device):
    spec, setup = make(flags, device)
    runs = {run.role: run for run in setup.models}
    assert runs.keys() == spec.groups.keys()
    for part, role in spec.groups.items():
        run = runs[part]
        assert run.ranks == role.ranks
        assert run.pool == spec.pool(ROLES[part])
        assert run.sleeps == sleeps(spec, part, role)
        same_model(run, role)
    engines = {run.role: run for run in setup.engines}
    assert engines.keys() == {"engines"} | ({"judge"} if spec.judge else set())
    same_engine(engines["engines"], spec.engines, spec.pool("vllm"), device)
    assert engines["engines"].bucket_bytes == spec.engines.bucket_bytes
    settings = spec.engines.settings
    takes_turns = spec.engines_share and settings.enable_sleep and device.can("sleep")
    assert engines["engines"].sleeps == takes_turns
    if spec.judge:
        same_engine(engines["judge"], spec.judge, spec.pool("judge"), device)
        assert engines["judge"].sleeps == spec.judge_sleeps


def same_engine(run: EngineRun, role: EngineRole | JudgeRole, pool: str, device: Device) -> None:
    settings = role.settings
    assert (run.count, run.pool) == (role.count, pool)
    assert run.tensor_parallel == settings.tensor_parallel_size
    assert run.utilization == settings.gpu_memory_utilization
    assert run.shape.name == settings.model
    assert run.tokens_each == settings.max_model_len
    assert run.enforce_eager == (settings.enforce_eager or device.kind == "cpu")
    assert run.kv_cache_bytes == (int(settings.kv_cache_gb * 2**30) if device.kind == "cpu" else None)


def sleeps(spec: RolesSpec, part: str, role: TrainedRole) -> bool:
    """As `cluster.build._sleepers` has it."""
    return spec.device.can("sleep") and role.sleeps and not (part in SCORERS and spec.overlapping)


def same_model(run: ModelRun, role: TrainedRole) -> None:
    model, engine = role.model, role.engine
    lora = model.lora
    assert run.shape.name == model.path
    assert run.kind == model.kind
    assert run.dtype == model.dtype == engine.dtype
    assert run.zero_stage == effective_stage(engine)
    assert run.trainable == engine.trainable
    assert (run.adam_offload, run.param_offload, run.zpg) == (engine.adam_offload, engine.param_offload, engine.zpg)
    config = deepspeed_config(engine, run.ranks, 64, ordered=True)
    assert run.overlap_comm == config["zero_optimization"]["overlap_comm"]
    assert run.eight_bit == engine.eight_bit
    assert run.grad_accum_dtype == engine.grad_accum_dtype
    assert (run.lora is None) == (lora is None)
    if run.lora is not None and lora is not None:
        ours, theirs = run.lora, lora
        assert (ours.rank, ours.alpha, ours.dropout) == (theirs.rank, theirs.alpha, theirs.dropout)
        assert ours.targets == theirs.target_modules
    assert (run.load_in_4bit, run.load_in_8bit) == (model.load_in_4bit, model.load_in_8bit)
    assert (run.gradient_checkpointing, run.reentrant) == (model.gradient_checkpointing, model.reentrant)
    assert (run.packing, run.attention, run.logprob_chunk) == (
        model.packing,
        model.attn_implementation,
        model.logprob_chunk,
    )


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
def test_pools_are_the_bundles_that_are_reserved(make, flags: str, device: Device):
    spec, setup = make(flags, device)
    assert demands_of(setup) == spec.demands()
    bundles = bundles_of(spec.demands(), gpu=device.count > 0)
    if device.count:
        assert setup.pools == {pool: sum(b["GPU"] for b in content) for pool, content in bundles.items()}
    else:
        assert setup.pools.keys() == bundles.keys()


SUPERVISED = {
    "rm": "--ds.zero_stage 3 --train.micro_batch_size 2 --model.gradient_checkpointing_enable",
    "dpo": "--ds.lora.rank 8 --ds.load_in_4bit --ds.adam_offload --ds.packing_samples",
    "sft": "--ds.param_dtype fp16 --ds.zero_stage 0 --ds.logprob_chunk_size 128",
}
EIGHT_BITS = "--ds.lora.rank 8 --ds.load_in_8bit"


@pytest.mark.parametrize("device", [GPUS, CPU], ids=["a GPU", "a CPU"])
@pytest.mark.parametrize(("command", "given"), [*SUPERVISED.items(), *((name, EIGHT_BITS) for name in SUPERVISED)])
def test_supervised_models_are_those_that_start(command: str, given: str, device: Device):
    flags = f"--model.model_name_or_path Qwen/Qwen3-0.6B --data.dataset d {given}"
    parsed = parse(command, flags.split())
    config = parsed.config
    data = DataSize(rows=None, mean_tokens=None, max_tokens=config.data.max_len)
    (run,) = setup_of(command, config, parsed.explicit, hardware(device), data).models  # type: ignore[arg-type]
    model = model_spec(config.model.model_name_or_path, config.model, config.ds, device, explicit=False)
    engine = engine_spec(config, config.ds, total_steps=1, seed=0, exact=False)
    model = replace(model, kind="reward" if command == "rm" else "causal_lm")
    same_model(run, TrainedRole(1, model, engine, threads=1))
