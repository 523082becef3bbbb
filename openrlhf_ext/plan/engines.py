"""The memory of vLLM engines (0.29): what of their share is weights, and how much is left for the cache.

An engine takes its share of the card whole: what weights, graphs and the peak of a forward leave of
`utilization` x memory becomes the key-value cache. Its CUDA context and communicators come on top, because
vLLM measures the card after they are there (`v1/worker/gpu_worker.py`, `init_device`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from openrlhf_ext.plan.parameters import parameters
from openrlhf_ext.plan.types import BYTES, EngineRun, Hardware, ModelRun, ModelShape, Phase, Term

BLOCK = 16
"""Tokens in one block of the cache."""
BATCHED_TOKENS = 2048
"""Tokens of one step, prompts cut up to fit (`SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS`: an `LLMEngine` made by
`from_engine_args` is of no usage context that has another)."""
CPU_BATCHED_TOKENS = 8192
"""The least on a CPU, where prompts are not cut (`rollout.engine_start`)."""
MOST_SEQUENCES = 256
"""Rows of one step, and of the logits that a start samples from to see what that takes."""
SAMPLER_COPIES = 4
"""Of the step's float32 logits at the sampler's peak: the logits, their processed copy, log-softmax, and the
probabilities beside the noise of the draw (`v1/sample/sampler.py`)."""
GRAPHS = 51 + 35
"""Batch sizes that are captured with 256 sequences: 51 piecewise (up to 512 tokens) and 35 whole (up to 256)."""
GRAPH_BYTES = 180_000
"""Of one captured layer. Not measured here: vLLM's own log says 0.52 GiB for 86 sizes of 36 layers (Qwen3-8B,
github.com/LMCache/LMCache issue 3430)."""
WORKSPACES = 200_000_000
"""Of attention, cuBLAS and the inputs of a step. Not measured here: a sleeping Qwen3-4B has 1.19 GiB of its GPU in use
(github.com/vllm-project/vllm issue 28714), which graphs and a context do not explain."""
SMALL = 1 << 20
"""Bytes up to which torch's allocator puts tensors together in one segment."""
STAGING = 64 << 20
"""The trainer's staging buffer is a multiple of this (`rollout.transfer`)."""

EVER: frozenset[Phase] = frozenset({"load", "generate", "score", "train", "publish", "save", "evaluate"})


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes on one GPU of an engine (on a CPU: of its process). `cache` is 0 or less where nothing is left for it."""

    weights: int
    graphs: int
    forward: int
    cache: int
    sequence: int  # of one sequence of full length, in the cache
    token: int  # of one more token, windows aside

    @property
    def sequences(self) -> int:
        """Sequences of full length that the cache holds at a time."""
        return max(self.cache, 0) // self.sequence

    @property
    def tokens(self) -> int:
        """Tokens that the cache holds of sequences that are no longer than the windows of its layers."""
        return max(self.cache, 0) // (self.token * BLOCK) * BLOCK


def engine_memory(run: EngineRun, hardware: Hardware) -> EngineMemory:
    shape, size, parts = run.shape, BYTES[run.dtype], run.tensor_parallel
    weights = math.ceil(_count(shape) * size / parts)
    batched = BATCHED_TOKENS if hardware.on_gpu else max(run.tokens_each + MOST_SEQUENCES, CPU_BATCHED_TOKENS)
    if not hardware.on_gpu and shape.tied:
        weights += shape.vocab * shape.hidden * size  # the head has a packed copy of its own
    graphs = 0 if run.enforce_eager else GRAPHS * shape.layers * GRAPH_BYTES
    graphs += WORKSPACES if hardware.on_gpu else 0
    forward = _forward(shape, batched, size, parts)
    if run.kv_cache_bytes is not None:
        cache = run.kv_cache_bytes
    else:
        assert hardware.card is not None, "an engine on a GPU has a card"
        cache = budget(run, hardware) - weights - graphs - forward
    tokens = [_cached_tokens(run.tokens_each, window, batched) for window in shape.windows or (None,) * shape.layers]
    layer = _layer_token(run)
    return EngineMemory(weights, graphs, forward, cache, layer * sum(tokens), layer * shape.layers)


def budget(run: EngineRun, hardware: Hardware) -> int:
    """Bytes of a GPU that the engine may take (`v1/worker/utils.py`, `request_memory`)."""
    assert hardware.card is not None, "a share is one of a GPU"
    return math.ceil(hardware.card.bytes * run.utilization)


def _layer_token(run: EngineRun) -> int:
    """Bytes of one token's key and value in one layer; heads are repeated where there are fewer than GPUs."""
    heads = max(math.ceil(run.shape.kv_heads / run.tensor_parallel), 1)
    return 2 * heads * run.shape.head_dim * BYTES[run.dtype]


def _cached_tokens(length: int, window: int | None, batched: int) -> int:
    """Tokens, in whole blocks, that one sequence of this length holds in a layer.

    A layer with a window forgets what is behind it, but only between steps, and may begin in the middle of a block
    (`v1/kv_cache_interface.py`, `SlidingWindowSpec`).
    """
    whole = math.ceil(length / BLOCK)
    if window is None:
        return whole * BLOCK
    return min(whole, math.ceil(min(window - 1 + batched, length) / BLOCK) + 1) * BLOCK


def _forward(shape: ModelShape, tokens: int, size: int, parts: int) -> int:
    """The peak of a step: an MLP's inputs, gate and up and their product, or the sampler over full logits."""
    matrices = 2 if shape.gated else 1
    block = tokens * size * (3 * shape.hidden + (matrices + 1) * math.ceil(shape.ffn / parts))
    rows = min(tokens, MOST_SEQUENCES)
    sampler = rows * shape.vocab * (size + SAMPLER_COPIES * 4) + tokens * shape.hidden * size
    return max(block, sampler)


def engine_terms(run: EngineRun, hardware: Hardware) -> list[Term]:
    """Of one engine on each GPU it has; on a CPU the same in host memory."""
    memory = engine_memory(run, hardware)
    whole: frozenset[Phase] = run.awake if run.sleeps else EVER
    # With the weights alone an engine waits for new ones (`cluster.phases`).
    cached = whole - {"publish", "save"} if run.sleeps else EVER
    parts = [
        ("vLLM weights", memory.weights, whole),
        ("vLLM KV cache", max(memory.cache, 0), cached),
        ("vLLM CUDA graphs and workspaces", memory.graphs, EVER),  # they stay while an engine sleeps
        ("vLLM activations and logits", memory.forward, cached),
    ]
    terms = [Term(run.role, name, size, "gpu", run.pool, phases) for name, size, phases in parts if size]
    if run.sleeps:
        # Sleep level 1; the pages are pinned, and torch keeps them for the next time.
        pinned = _pinned(run.shape, BYTES[run.dtype], run.tensor_parallel)
        terms.append(Term(run.role, "vLLM weights (asleep)", pinned, "host", run.pool, EVER))
    return terms


@lru_cache(maxsize=64)
def _pinned(shape: ModelShape, size: int, parts: int) -> int:
    """The weights in pinned memory, of which torch makes each piece a power of two (`CachingHostAllocator.h`).

    vLLM keeps the projections of queries, keys and values in one piece, and those of gate and up.
    """
    pieces: dict[str, int] = {}
    for weight in parameters(shape):
        name = re.sub(r"\b[qkv]_proj\b", "qkv", re.sub(r"\b(gate|up)_proj\b", "gate_up", weight.name))
        pieces[name] = pieces.get(name, 0) + math.ceil(weight.numel * size / parts)
    # Pieces under a megabyte come from segments of 2 MiB, which are copied whole.
    small = sum(piece for piece in pieces.values() if piece <= SMALL)
    return small + sum(1 << (piece - 1).bit_length() for piece in pieces.values() if piece > SMALL)


def bucket_bytes(engine: EngineRun, policy: ModelRun) -> int:
    """Of one bucket of weights: as asked for, at least the largest tensor and at most all of them."""
    size = BYTES[policy.dtype]
    return max(min(engine.bucket_bytes, _count(policy.shape) * size), _largest(policy.shape) * size)


def bucket_terms(engine: EngineRun, policy: ModelRun, hardware: Hardware) -> list[Term]:
    """What a transfer of weights takes at both ends, beside the weights themselves (`rollout.transfer`)."""
    size, name = bucket_bytes(engine, policy), "weight-transfer buckets"
    publish: frozenset[Phase] = frozenset({"publish"})
    # Sharded weights are gathered for their bucket, adapters are merged into new tensors.
    whole = size * ((policy.zero_stage == 3) + (policy.lora is not None))
    sent = [Term("policy", "gathered and merged weights", whole, "gpu", policy.pool, publish)]
    layer = max(_layer_bytes(policy.shape, BYTES[policy.dtype]) // engine.tensor_parallel, 1)
    if not hardware.on_gpu:
        # The bucket, and the object store's copy of it, which the engines read in place. The store keeps its pages.
        sent.append(Term("policy", name, size, "host", policy.pool, publish))
        sent.append(Term("policy", "object store", size, "host", policy.pool, EVER - {"load"}))
        return [*sent, Term(engine.role, name, layer, "gpu", engine.pool, publish)]
    if engine.pool == policy.pool:
        # By handle: the trainer's staging buffer stays for good, also while it sleeps.
        staging = math.ceil(size / STAGING) * STAGING
        sent.append(Term("policy", name, staging, "gpu", policy.pool, EVER - {"load"}))
    else:
        sent.append(Term("policy", name, size, "gpu", policy.pool, publish))
    # An engine keeps a bucket until the layers it belongs to are whole, and makes each layer anew.
    return [*sent, Term(engine.role, name, 2 * size + layer, "gpu", engine.pool, publish)]


@lru_cache(maxsize=64)
def _count(shape: ModelShape) -> int:
    return sum(weight.numel for weight in parameters(shape))


@lru_cache(maxsize=64)
def _largest(shape: ModelShape) -> int:
    return max(weight.numel for weight in parameters(shape))


@lru_cache(maxsize=64)
def _layer_bytes(shape: ModelShape, size: int) -> int:
    return sum(w.numel for w in parameters(shape) if ".layers.0." in w.name) * size


def misfit(run: EngineRun, hardware: Hardware) -> str | None:
    """Why an engine could not even start, in a sentence; None where it can."""
    memory = engine_memory(run, hardware)
    if memory.cache >= memory.sequence:
        return None
    what = "the judge's engine" if run.role == "judge" else "an engine"
    section = "judge" if run.role == "judge" else "vllm"
    if not hardware.on_gpu:
        return (
            f"The cache of {what} has {max(memory.cache, 0) / 1e9:.2f} GB and one sequence of {run.tokens_each} tokens "
            f"takes {memory.sequence / 1e9:.2f} GB: raise --{section}.kv_cache_gb, or shorten the lengths."
        )
    needs = {
        "weights": memory.weights,
        "its graphs and one forward": memory.graphs + memory.forward,
        f"one sequence of {run.tokens_each} tokens": memory.sequence,
    }
    listed = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in needs.items())
    return (
        f"The share of {what}, {budget(run, hardware) / 1e9:.2f} GB, is too small ({listed}): raise "
        f"--{section}.gpu_memory_utilization, or give it more GPUs by --{section}.tensor_parallel_size."
    )
