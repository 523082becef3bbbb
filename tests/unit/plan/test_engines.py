"""An engine's memory by hand, and the sentences on engines that cannot start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.plan.engines import (
    BATCHED_TOKENS,
    GRAPH_BYTES,
    GRAPHS,
    WORKSPACES,
    bucket_bytes,
    bucket_terms,
    budget,
    engine_memory,
    engine_terms,
    misfit,
)
from openrlhf_ext.plan.shapes import find_shape
from openrlhf_ext.plan.types import Card, EngineRun, Hardware, Lora, ModelRun

CARD = Card("made up", 80_000_000_000, 500_000_000, 1e15, 3e12, 4e11)
GPU = Hardware(CARD, 1)
CPU = Hardware(None, 0)
QWEN = find_shape("Qwen/Qwen3-4B")
GEMMA = find_shape("google/gemma-2-2b")
ENGINE = EngineRun("engines", QWEN, 1, "all", utilization=0.5, sequences=64, prompt_tokens=2048, tokens_each=4096)
QWEN_WEIGHTS = 4_022_468_096 * 2
"""4.02 B parameters in bf16; the head is the embedding."""


def test_qwen_in_half_of_80_gb():
    memory = engine_memory(ENGINE, GPU)
    assert memory.weights == QWEN_WEIGHTS
    assert memory.graphs == GRAPHS * 36 * GRAPH_BYTES + WORKSPACES
    # The sampler over 256 rows of 151,936 logits in bf16 and four times in float32, beside 2,048 hidden states of
    # 2,560, is more than an MLP's 2,048 x (3 x 2,560 + 3 x 9,728) numbers of 2 bytes.
    assert memory.forward == 256 * 151_936 * (2 + 4 * 4) + 2048 * 2560 * 2
    assert memory.forward > 2048 * (3 * 2560 + 3 * 9728) * 2
    assert memory.cache == 40_000_000_000 - memory.weights - memory.graphs - memory.forward
    # 2 (key, value) x 8 heads x 128 x 2 bytes in each of 36 layers.
    assert memory.token == 2 * 8 * 128 * 2 * 36 == 147_456
    assert memory.sequence == 4096 * 147_456
    assert memory.sequences == memory.cache // (4096 * 147_456)
    assert memory.tokens == memory.cache // (16 * 147_456) * 16


def test_what_vllm_says_of_itself():
    """github.com/LMCache/LMCache issue 3430: Qwen3-8B on a card of 23.53 GiB (0.52 GiB of graphs are 2.21 % of it) at
    0.9764 has 6.37 GiB of cache, 46,368 tokens, 2.83 sequences of 16,384."""
    card = replace(CARD, bytes=int(23.53 * 2**30))
    run = replace(ENGINE, shape=find_shape("Qwen/Qwen3-8B"), utilization=0.9764, tokens_each=16_384)
    memory = engine_memory(run, Hardware(card, 1))
    assert memory.cache == pytest.approx(6.37 * 2**30, rel=0.02)
    assert memory.tokens == pytest.approx(46_368, rel=0.02)
    assert memory.cache / memory.sequence == pytest.approx(2.83, rel=0.02)


def test_an_awake_engine_takes_its_share_whole():
    terms = engine_terms(ENGINE, GPU)
    assert sum(term.bytes for term in terms if "generate" in term.phases) == budget(ENGINE, GPU) == 40_000_000_000


def test_an_engine_that_sleeps_gives_back_weights_and_cache():
    run = replace(ENGINE, sleeps=True, awake=frozenset({"generate", "publish", "save"}))
    on_gpu = [term for term in engine_terms(run, GPU) if term.where == "gpu"]

    def held(phase: str) -> set[str]:
        return {term.name for term in on_gpu if phase in term.phases}

    assert held("train") == held("score") == held("load") == {"vLLM CUDA graphs and workspaces"}
    assert held("publish") == held("save") == {"vLLM CUDA graphs and workspaces", "vLLM weights"}
    assert held("generate") >= {"vLLM CUDA graphs and workspaces", "vLLM weights", "vLLM KV cache"}
    (copy,) = [term for term in engine_terms(run, GPU) if term.where == "host"]
    # Each piece becomes a power of two of bytes: queries, keys and values (6,144 x 2,560) 2^25, the output
    # (2,560 x 4,096) 2^25, gate and up (19,456 x 2,560) 2^27, down (2,560 x 9,728) 2^26, the embedding 2^30.
    matrices = 36 * (2**25 + 2**25 + 2**27 + 2**26) + 2**30
    norms = 2 * (36 * (2 * 2560 + 2 * 128) + 2560)
    assert copy.bytes == matrices + norms


def test_two_gpus_share_weights_and_heads():
    one, two = engine_memory(ENGINE, GPU), engine_memory(replace(ENGINE, tensor_parallel=2), GPU)
    assert two.weights == one.weights // 2
    assert two.token == one.token // 2
    # 16 GPUs repeat the 8 heads.
    assert engine_memory(replace(ENGINE, tensor_parallel=16), GPU).token == one.token // 8


def test_windows_bound_what_a_layer_caches():
    # Gemma 2 2B: 13 of 26 layers see 4,096 tokens back; 4 heads of 256 in bf16 are 4,096 bytes a token and layer.
    # Within the window all layers hold the sequence; a window may begin within a block, hence one more.
    run = replace(ENGINE, shape=GEMMA, tokens_each=8192)
    layer = 2 * 4 * 256 * 2
    window = 4096 - 1 + BATCHED_TOKENS  # 6,143 tokens are 384 blocks
    assert engine_memory(run, GPU).sequence == layer * (13 * 8192 + 13 * (384 + 1) * 16)
    assert -(-window // 16) == 384
    assert engine_memory(replace(run, tokens_each=4096), GPU).sequence == layer * 26 * 4096


def test_a_graphless_engine_has_more_cache():
    eager = engine_memory(replace(ENGINE, enforce_eager=True), GPU)
    assert eager.graphs == WORKSPACES
    assert eager.cache - engine_memory(ENGINE, GPU).cache == GRAPHS * 36 * GRAPH_BYTES


def test_on_a_cpu_the_cache_is_what_it_is_given():
    run = replace(ENGINE, kv_cache_bytes=1 << 30, enforce_eager=True, dtype="fp32", tokens_each=1024)
    memory = engine_memory(run, CPU)
    assert memory.cache == 1 << 30
    assert memory.token == 2 * 147_456
    # The head of tied embeddings has a copy of its own, packed for the processor.
    assert memory.weights == 2 * QWEN_WEIGHTS + 151_936 * 2560 * 4
    assert misfit(run, CPU) is None
    small = replace(run, kv_cache_bytes=1 << 20)
    assert "--vllm.kv_cache_gb" in (misfit(small, CPU) or "")


def test_a_share_below_the_weights_is_told():
    sentence = misfit(replace(ENGINE, utilization=0.1), GPU)
    assert sentence is not None
    assert sentence.startswith("The share of an engine, 8.00 GB, is too small (weights 8.04 GB")
    assert "--vllm.gpu_memory_utilization" in sentence
    judge = misfit(replace(ENGINE, role="judge", utilization=0.1), GPU)
    assert judge is not None
    assert "--judge.gpu_memory_utilization" in judge
    assert misfit(ENGINE, GPU) is None


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.05, 1.0))
def test_a_larger_card_never_takes_a_sequence_away(size: int, more: int, utilization: float):
    run = replace(ENGINE, utilization=utilization)
    small, large = (Hardware(replace(CARD, bytes=gb * 10**9), 1) for gb in (size, size + more))
    assert engine_memory(run, large).sequences >= engine_memory(run, small).sequences
    assert misfit(run, small) is not None or misfit(run, large) is None


POLICY = ModelRun("policy", QWEN, "causal_lm", True, 1, "all", zero_stage=2)


def test_a_bucket_is_at_least_the_largest_tensor():
    # The embedding: 151,936 x 2,560 x 2 bytes.
    assert bucket_bytes(replace(ENGINE, bucket_bytes=512_000_000), POLICY) == 151_936 * 2560 * 2
    assert bucket_bytes(replace(ENGINE, bucket_bytes=2_000_000_000), POLICY) == 2_000_000_000


def at(terms, role: str, phase: str, where: str = "gpu") -> int:
    return sum(t.bytes for t in terms if t.role == role and phase in t.phases and t.where == where)


def test_by_handle_the_staging_buffer_stays():
    terms = bucket_terms(replace(ENGINE, bucket_bytes=1_000_000_000), POLICY, GPU)
    staging = 15 * (64 << 20)  # the multiple of 64 MiB from 1e9 upwards
    assert at(terms, "policy", "publish") == at(terms, "policy", "generate") == staging
    assert at(terms, "policy", "load") == 0
    # Two buckets of which layers still wait for parts, and one layer that is made anew.
    layer = (2560 * (4096 + 2 * 1024) + 4096 * 2560 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128) * 2
    assert at(terms, "engines", "publish") == 2_000_000_000 + layer
    assert at(terms, "engines", "generate") == 0


def test_between_gpus_a_bucket_comes_and_goes():
    terms = bucket_terms(replace(ENGINE, bucket_bytes=1_000_000_000, pool="vllm"), POLICY, GPU)
    assert at(terms, "policy", "publish") == 1_000_000_000
    assert at(terms, "policy", "generate") == 0


@pytest.mark.parametrize(
    ("stage", "lora", "extra"), [(2, None, 0), (3, None, 1), (2, Lora(8, 16), 1), (3, Lora(8, 16), 2)]
)
def test_shards_are_gathered_and_adapters_merged(stage, lora, extra):
    policy = replace(POLICY, zero_stage=stage, lora=lora)
    plain = at(bucket_terms(replace(ENGINE, bucket_bytes=10**9), POLICY, GPU), "policy", "publish")
    terms = bucket_terms(replace(ENGINE, bucket_bytes=10**9), policy, GPU)
    assert at(terms, "policy", "publish") == plain + extra * 10**9


def test_on_a_cpu_a_bucket_is_copied_to_the_object_store():
    terms = bucket_terms(replace(ENGINE, bucket_bytes=10**9), POLICY, CPU)
    assert at(terms, "policy", "publish", "host") == 2 * 10**9


def test_a_bucket_is_at_most_all_weights():
    # 4.02 B parameters, 8.04 GB in bf16.
    assert bucket_bytes(replace(ENGINE, bucket_bytes=10**11), POLICY) == QWEN_WEIGHTS
