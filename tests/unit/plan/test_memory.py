"""From a setup's terms to its peaks: who is on a GPU in which phase, and what the fullest machine holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openrlhf_ext.config import parse
from openrlhf_ext.plan.engines import budget
from openrlhf_ext.plan.memory import memory_of
from openrlhf_ext.plan.processes import DRIVER, ENGINE, RAY, REWARD, SUPERVISED, TOKEN_IN_DRIVER, WORKER
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.setup_supervised import reference_strategy
from openrlhf_ext.plan.types import Card, DataSize, Hardware, Memory, Setup

CARD = Card("made up", 80_000_000_000, 500_000_000, 1e15, 3e12, 4e11)
ONE, EIGHT, CPU = Hardware(CARD, 1), Hardware(CARD, 8), Hardware(None, 0)
REINFORCE = "--actor.model_name_or_path Qwen/Qwen3-0.6B --algo.advantage.estimator reinforce"
SMALL = f"{REINFORCE} --rollout.batch_size 16 --train.batch_size 16 --data.max_len 512"
SHARED = f"{SMALL} --train.colocate_all --vllm.gpu_memory_utilization 0.5"
ASLEEP = f"{SHARED} --vllm.enable_sleep --ds.enable_sleep"
REWARD_MODEL = "--reward.model_name_or_path Qwen/Qwen3-0.6B"
JUDGE = "--judge.model_name_or_path Qwen/Qwen3-4B --judge.gpu_memory_utilization 0.3"
WEIGHTS = 596_049_920
"""Parameters of Qwen3-0.6B."""


def made(flags: str, hardware: Hardware = ONE, command: str = "rl") -> Setup:
    parsed = parse(command, flags.split(), planning=True)
    data = DataSize(rows=1000, mean_tokens=300.0, max_tokens=parsed.config.data.max_len)
    return setup_of(command, parsed.config, parsed.explicit, hardware, data)  # type: ignore[arg-type]


def memory(flags: str, hardware: Hardware = ONE, command: str = "rl") -> Memory:
    return memory_of(made(flags, hardware, command))


def roles_at(found: Memory, phase: str, pool: str = "all") -> set[tuple[str, str]]:
    """(role, term) of what is on a GPU, contexts and workspaces aside."""
    gone = ("CUDA context", "cuBLAS workspace")
    return {
        (term.role, term.name)
        for term in found.terms
        if term.where == "gpu" and phase in term.phases and term.pool == pool and term.name not in gone
    }


def test_a_peak_is_the_sum_of_the_terms_of_its_phase():
    found = memory(f"{ASLEEP} {REWARD_MODEL}")
    assert {peak.phase for peak in found.peaks} == {"load", "generate", "score", "train", "publish", "save"}
    for peak in found.peaks:
        here = [term for term in found.terms if peak.phase in term.phases]
        assert peak.gpu_bytes == sum(t.bytes for t in here if t.where == "gpu" and t.pool == peak.pool)
        assert peak.host_bytes == sum(t.bytes for t in here if t.where == "host")
    assert found.gpu_peak == max(peak.gpu_bytes for peak in found.peaks)


def test_roles_that_sleep_take_turns():
    found = memory(f"{ASLEEP} {REWARD_MODEL}")

    def awake(phase: str) -> set[str]:
        return {role for role, name in roles_at(found, phase) if name in ("weights", "vLLM weights")}

    assert awake("generate") == {"engines"}
    assert awake("score") == {"reward"}
    assert awake("train") == {"policy", "reference"}
    assert awake("publish") == {"policy", "engines"}
    assert awake("load") == {"policy", "reference", "reward"}
    assert {role for role, name in roles_at(found, "publish") if name == "vLLM KV cache"} == set()


def test_roles_that_do_not_sleep_are_there_all_the_time():
    found = memory(f"{SHARED} {REWARD_MODEL}")
    for phase in ("load", "generate", "score", "train", "publish"):
        weights = {role for role, name in roles_at(found, phase) if name in ("weights", "vLLM weights")}
        assert weights == {"policy", "reference", "reward", "engines"}, phase


def test_an_engine_awake_is_its_share_beside_everybody_s_contexts():
    setup = made(f"{ASLEEP} --algo.kl.init_coef 0")
    found = memory_of(setup)
    generate = next(peak for peak in found.peaks if peak.phase == "generate")
    # The engine's share; contexts of the policy's process and the engine's; the policy's workspace of cuBLAS; and the
    # staging buffer, that the policy never gives back: 512e6 bytes are 8 x 64 MiB.
    expected = budget(setup.engines[0], ONE) + 2 * CARD.context + (32 << 20) + 8 * (64 << 20)
    assert generate.gpu_bytes == expected


def test_training_without_sleep_keeps_what_it_reserved():
    long = "--data.max_len 8192 --train.micro_batch_size 2 --rollout.micro_batch_size 2"
    awake, asleep = memory(f"{SHARED} {long}"), memory(f"{ASLEEP} {long}")
    kept = "kept by torch's allocator"
    for name in ("activations", "gradients", "allocator rounding and fragmentation"):
        assert ("policy", name) in roles_at(awake, "train")
        assert ("policy", name) not in roles_at(awake, "generate")

    def held(found: Memory, phase: str) -> int:
        aside = ("CUDA context", "NCCL buffers", "cuBLAS workspace")
        terms = [t for t in found.terms if t.role == "policy" and t.where == "gpu" and t.name not in aside]
        return sum(term.bytes for term in terms if phase in term.phases)

    assert held(awake, "generate") == held(awake, "score") == held(awake, "publish") == held(awake, "train")
    assert held(awake, "load") < held(awake, "train")
    assert ("policy", kept) in roles_at(awake, "generate")
    assert all(("policy", kept) not in roles_at(asleep, phase) for phase in ("generate", "train", "publish"))
    assert held(asleep, "generate") == 8 * (64 << 20)  # the staging buffer


def test_a_frozen_model_gives_back_what_its_answers_took():
    long = "--data.max_len 8192 --train.micro_batch_size 2 --rollout.micro_batch_size 2"
    awake, asleep = memory(f"{SHARED} {long}"), memory(f"{ASLEEP} {long}")
    assert ("reference", "activations") in roles_at(awake, "train")
    assert ("reference", "activations") not in roles_at(awake, "generate")
    # Where the policy sleeps, it has reserved little when the reference answers, and the reference nothing when it
    # trains.
    assert ("reference", "activations") not in roles_at(asleep, "train")


def test_terms_that_supervised_phases_have_not_are_left_out():
    found = memory("--model.model_name_or_path Qwen/Qwen3-0.6B", command="sft")
    assert {peak.phase for peak in found.peaks} == {"load", "train", "save", "evaluate"}
    assert all(term.phases <= {"load", "train", "save", "evaluate"} for term in found.terms)
    assert all(term.bytes > 0 for term in found.terms)


def host(found: Memory, name: str) -> int:
    return sum(term.bytes for term in found.terms if term.where == "host" and term.name == name)


def test_on_a_cpu_everything_is_on_the_host():
    flags = f"{SMALL} --actor.num_gpus_per_node 2 --ref.num_gpus_per_node 1 --ds.zero_stage 0 --ds.param_dtype fp32"
    found = memory(f"{flags} --reward.remote_url a.py,b.py,http://host/c", CPU)
    assert {term.where for term in found.terms} == {"host"}
    assert found.gpu_peak == 0
    assert found.gpu_limit is None
    # Two ranks of the policy and one of the reference, float32 and whole.
    assert host(found, "weights") == 3 * 4 * WEIGHTS
    assert host(found, "optimizer") == 2 * 2 * 4 * WEIGHTS
    # Three workers, an engine and the driver; files of rewards have a process each, a URL has none.
    assert host(found, "Python and libraries") == 3 * WORKER + ENGINE + DRIVER
    assert host(found, "reward processes") == 2 * REWARD
    assert host(found, "Ray") == RAY
    assert host(found, "rollouts") == 16 * 512 * TOKEN_IN_DRIVER


def test_rollouts_that_are_ahead_wait_in_the_driver():
    ahead = memory(f"{SMALL} --train.async_enable --train.async_queue_size 2", EIGHT)
    assert host(ahead, "rollouts") == 3 * host(memory(SMALL, EIGHT), "rollouts")


def test_a_supervised_run_on_one_rank_is_one_process():
    flags = "--model.model_name_or_path Qwen/Qwen3-0.6B --data.max_len 128"
    found = memory(f"{flags} --ref.strategy model", CPU, "dpo")
    assert host(found, "Python and libraries") == SUPERVISED
    assert host(found, "Ray") == 0
    several = memory(f"{flags} --model.num_gpus_per_node 4", CPU, "rm")
    assert host(several, "Python and libraries") == 4 * WORKER + DRIVER
    assert host(several, "Ray") == RAY


def test_the_host_s_limit_counts():
    flags = f"{SMALL} --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1"
    need = memory(flags, CPU).host_peak
    assert memory(flags, replace(CPU, host_bytes=need)).fits
    assert not memory(flags, replace(CPU, host_bytes=need - 1)).fits


def test_the_fullest_machine_holds_what_it_has_room_for():
    # 16 ranks that offload their optimizer: each machine has 8 of them.
    flags = "--model.model_name_or_path Qwen/Qwen3-0.6B --model.num_nodes 2 --model.num_gpus_per_node 8"
    flags += " --ds.adam_offload --ds.zero_stage 3"
    one = host(memory(flags, Hardware(CARD, 16), "sft"), "optimizer")
    assert host(memory(flags, Hardware(CARD, 8, 2), "sft"), "optimizer") == one // 2


def test_too_few_gpus_is_a_sentence():
    found = memory(f"{SMALL} --actor.num_gpus_per_node 4 --ref.num_gpus_per_node 4", Hardware(CARD, 8))
    assert not found.fits
    assert found.misfits == (
        "The roles ask for 9 GPUs (actor 4 x 1, ref 4 x 1, vllm 1 x 1) and there are 8: lower "
        "--actor.num_gpus_per_node, --ref.num_gpus_per_node or --vllm.num_engines, share with "
        "--train.colocate_all, or add nodes.",
    )
    assert memory(f"{SMALL} --actor.num_gpus_per_node 4 --ref.num_gpus_per_node 3", EIGHT).misfits == ()


def test_an_engine_larger_than_a_machine_is_a_sentence():
    flags = f"{SMALL} --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --vllm.tensor_parallel_size 4"
    found = memory(flags, Hardware(CARD, 2, 4))
    assert len(found.misfits) == 1
    assert "--vllm.tensor_parallel_size" in found.misfits[0]


def test_a_judge_is_an_engine_that_scores():
    found = memory(f"{ASLEEP} {JUDGE} --judge.enable_sleep")
    awake = {role for role, name in roles_at(found, "score") if name == "vLLM KV cache"}
    assert awake == {"judge"}
    assert {role for role, name in roles_at(found, "generate") if name == "vLLM KV cache"} == {"engines"}
    both = memory(f"{SHARED} --vllm.enable_sleep --ds.enable_sleep {JUDGE}")
    awake = {role for role, name in roles_at(both, "generate") if name == "vLLM KV cache"}
    assert awake == {"engines", "judge"}


def test_a_judge_of_its_own_has_its_own_gpu():
    setup = made(f"{SMALL} {JUDGE} --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1", EIGHT)
    assert setup.pools == {"actor": 1, "ref": 1, "vllm": 1, "judge": 1}


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        ("", "cached"),
        ("--ds.lora.rank 8", "base"),
        ("--ds.lora.rank 8 --ref.model_name_or_path Qwen/Qwen3-1.7B", "cached"),
        ("--ref.offload", "offloaded"),
        ("--ds.lora.rank 8 --ref.strategy cached", "cached"),
        ("--ref.strategy model", "model"),
    ],
)
def test_where_the_reference_comes_from(flags: str, strategy: str):
    parsed = parse("dpo", f"--model.model_name_or_path Qwen/Qwen3-0.6B {flags}".split(), planning=True)
    assert reference_strategy(parsed.config) == strategy
    second = made(f"--model.model_name_or_path Qwen/Qwen3-0.6B {flags}", command="dpo").models[1:]
    assert len(second) == (strategy in ("quantised", "offloaded", "model"))


def test_second_models_of_dpo():
    base = "--model.model_name_or_path Qwen/Qwen3-0.6B"
    whole = made(f"{base} --ref.strategy model", command="dpo").models[1]
    assert (whole.role, whole.trainable, whole.zero_stage, whole.load_in_4bit) == ("reference", False, 0, False)
    assert [one.backward for one in whole.passes] == [False]
    offloaded = made(f"{base} --ref.strategy offloaded", command="dpo").models[1]
    assert (offloaded.param_offload, offloaded.zero_stage) == (True, 3)
    assert made(f"{base} --ref.strategy quantised", command="dpo").models[1].load_in_4bit
    other = made(f"{base} --ref.strategy model --ref.model_name_or_path Qwen/Qwen3-1.7B", command="dpo").models[1]
    assert other.shape.name == "Qwen/Qwen3-1.7B"


def test_a_frozen_copy_of_adapters_is_a_term():
    flags = "--model.model_name_or_path Qwen/Qwen3-0.6B --ds.lora.rank 16 --ds.lora.target_modules q_proj"
    for hardware, where in ((ONE, "gpu"), (CPU, "host")):
        found = memory(f"{flags} --ref.strategy adapter", hardware, "dpo")
        (copy,) = [term for term in found.terms if (term.role, term.name) == ("reference", "adapters")]
        # A (16, 1024) and B (2048, 16) in each of 28 layers, in bf16.
        assert (copy.bytes, copy.where) == (28 * 16 * (1024 + 2048) * 2, where)


def test_pairs_are_two_rows():
    (run,) = made("--model.model_name_or_path Qwen/Qwen3-0.6B --train.micro_batch_size 2", command="rm").models
    train, asked = run.passes
    assert (train.rows, train.length, train.tokens, train.selected) == (4, 512, 2048, 4)
    assert train.backward
    assert not asked.backward
