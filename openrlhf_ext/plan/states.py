"""What a model keeps on each rank: weights, gradients, master weights and moments, as DeepSpeed 0.19.6 holds them.

The terms are those of a rank with the most of it. What comes and goes while one micro-batch or one optimizer step is
computed (activations, gradients on their way into a bucket, flat copies in `step`) is `plan.moments`'.

Read from DeepSpeed's `runtime/zero/stage_1_and_2.py`, `stage3.py` and `partition_parameters.py`, `engine.residence`
and bitsandbytes' `functional.quantize_4bit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from openrlhf_ext.plan.gathered import always_whole, most_gathered
from openrlhf_ext.plan.parameters import Weight, adapter_parameters, parameters, trainable_weights
from openrlhf_ext.plan.types import BYTES, SCORERS, ModelRun, Phase, Place, Term

PHASES: frozenset[Phase] = frozenset(get_args(Phase))
TRAIN: frozenset[Phase] = frozenset({"train"})
COMPUTE: frozenset[Phase] = frozenset({"train", "evaluate"})

BUCKET = 100_000_000
"""`engine.deepspeed_config.REDUCE_BUCKET_ELEMENTS`, the whole of which is allocated however small the model is."""
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256
NF4_TABLES = 4 * 16 + 4 * 256 + 4
"""Beside each quantised weight: the values of its 4 bits and of its 8-bit scales, and their mean."""
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""Of bitsandbytes' optimizers: smaller tensors keep float32 (`optim/optimizer.py`, `Optimizer2State.init_state`)."""

STATES = frozenset(
    {
        "weights",
        "quantised base",
        "quantisation constants",
        "embeddings, norms and head in higher precision",
        "adapters",
        "master weights",
        "optimizer",
        "gradients",
    }
)
"""The terms that `states_bytes` adds up."""


@dataclass(frozen=True, slots=True)
class _State:
    """Tensors by their bytes. `asleep`: whether they go to the host, are let go or stay while the model sleeps."""

    name: str
    tensors: tuple[int, ...]
    where: Place = "gpu"
    phases: frozenset[Phase] = PHASES
    asleep: Literal["host", "gone", "stays"] = "host"
    pinned: bool = False

    @property
    def bytes(self) -> int:
        return sum(_pinned(size) for size in self.tensors) if self.pinned else sum(self.tensors)


def state_terms(run: ModelRun) -> list[Term]:
    """Bytes of one rank (those on the host too: each process has its own)."""
    return list(_terms(run))


def states_bytes(run: ModelRun) -> int:
    """Weights, gradients, master weights and the optimizer's moments on one GPU; no buckets."""
    return sum(term.bytes for term in state_terms(run) if term.where == "gpu" and term.name in STATES)


@lru_cache(maxsize=64)
def _terms(run: ModelRun) -> tuple[Term, ...]:
    states = [state for state in _states(run) if state.bytes]
    return tuple(term for state in states for term in _residence(run, state))


def _residence(run: ModelRun, state: _State) -> Iterator[Term]:
    """Where a state is in which phase. Pinned memory that a sleeping model went to is kept for its next sleep."""
    leaves = run.sleeps and state.where == "gpu" and state.asleep != "stays"
    phases = state.phases & run.awake if leaves else state.phases
    yield Term(run.role, state.name, state.bytes, state.where, run.pool, phases)
    if leaves and state.asleep == "host" and state.phases - TRAIN:
        copy = sum(_pinned(size) for size in state.tensors)
        yield Term(run.role, f"{state.name} (asleep)", copy, "host", run.pool, PHASES - {"load"})


def _pinned(size: int) -> int:
    """torch rounds pinned memory up to a power of two (`ATen/core/CachingHostAllocator.h`)."""
    return 1 << (size - 1).bit_length() if size else 0


def _states(run: ModelRun) -> Iterator[_State]:
    trained = trainable_weights(run)
    names = {weight.name for weight in trained}
    adapters = adapter_parameters(run.shape, run.lora, run.kind) if run.lora else ()
    frozen = [w for w in (*parameters(run.shape, run.kind, run.head_dim), *adapters) if w.name not in names]
    yield from _frozen(run, frozen)
    if run.zero_stage == 3:
        yield from _gathered(run, [*frozen, *trained])
    if trained:
        yield from {0: _whole, 1: _partitioned, 2: _partitioned, 3: _sharded}[run.zero_stage](run, _groups(trained))


def _groups(weights: Iterable[Weight]) -> list[list[Weight]]:
    """The groups of `engine.optimizer`: matrices decay, norms and biases do not."""
    groups: tuple[list[Weight], list[Weight]] = ([], [])
    for weight in weights:
        groups[len(weight.shape) == 1].append(weight)
    return [group for group in groups if group]


def _trained_name(run: ModelRun) -> str:
    return "adapters" if run.lora else "weights"


def _frozen(run: ModelRun, weights: list[Weight]) -> Iterator[_State]:
    width = BYTES[run.dtype]
    if run.zero_stage == 3:
        for away, place in ((False, "gpu"), (True, "host")):
            held = [w for w in weights if away == (run.param_offload and not always_whole(w, run.shape.hidden))]
            shards = tuple(width * math.ceil(weight.numel / run.ranks) for weight in held)
            yield _State("weights", shards, "host" if away else "gpu", pinned=place == "host")
    elif run.bits:
        yield from _quantised(run.bits, [weight for weight in weights if weight.kind == "linear"])
        rest = tuple(width * weight.numel for weight in weights if weight.kind != "linear")
        yield _State("embeddings, norms and head in higher precision", rest)
    else:
        yield _State("weights", tuple(width * weight.numel for weight in weights))


def _quantised(bits: Literal[4, 8], weights: list[Weight]) -> Iterator[_State]:
    if bits == 8:  # a byte each, and a float32 for each row (arXiv:2208.07339, section 2.1)
        yield _State("quantised base", tuple(weight.numel for weight in weights))
        yield _State("quantisation constants", tuple(4 * weight.shape[0] for weight in weights))
        return
    yield _State("quantised base", tuple((weight.numel + 1) // 2 for weight in weights))
    scales, outer = zip(*(_scales(weight) for weight in weights), strict=True)
    yield _State("quantisation constants", (*scales, *outer))
    yield _State("quantisation tables", (NF4_TABLES,) * len(weights), asleep="stays")


def _scales(weight: Weight) -> tuple[int, int]:
    """One byte for each block of 64, and a float32 for each 256 of those (arXiv:2305.14314, section 3)."""
    blocks = math.ceil(weight.numel / NF4_BLOCK)
    return blocks, 4 * math.ceil(blocks / NF4_OUTER_BLOCK)


def _gathered(run: ModelRun, weights: list[Weight]) -> Iterator[_State]:
    """Whole weights beside the shards. One rank's shard is the weight itself, so it costs nothing there."""
    width, hidden = BYTES[run.dtype], run.shape.hidden
    compute: frozenset[Phase] = frozenset({"score"}) if run.role in SCORERS else COMPUTE
    asleep: Literal["gone", "stays"] = "gone" if run.trainable else "stays"
    if run.ranks > 1:
        small = tuple(width * weight.numel for weight in weights if always_whole(weight, hidden))
        yield _State("ZeRO-3 norms, biases and small adapters kept whole", small, asleep=asleep)
    if run.ranks > 1 or run.param_offload:
        yield _State("ZeRO-3 live parameters and prefetch", (width * most_gathered(run),), phases=compute)
    if run.zpg > 1:
        second = sum(width * math.ceil(weight.numel / run.ranks) * run.ranks // run.zpg for weight in weights)
        yield _State("ZeRO++ second shards", (second,), phases=compute)


def _whole(run: ModelRun, groups: list[list[Weight]]) -> Iterator[_State]:
    """Stage 0: torch's AdamW on the parameters themselves, in float32."""
    sizes = tuple(BYTES[run.dtype] * weight.numel for group in groups for weight in group)
    yield _State(_trained_name(run), sizes)
    yield _State("gradients", sizes, phases=TRAIN)
    moments = _moments(run, [weight.numel for group in groups for weight in group])
    yield _State("optimizer", moments, phases=PHASES - {"load"})


def _partitioned(run: ModelRun, groups: list[list[Weight]]) -> Iterator[_State]:
    """Stages 1 and 2: flat weights on every rank; master weights (of float32 ones too) and moments in parts."""
    width = BYTES[run.dtype]
    parts = [_part(group, run.ranks) for group in groups]
    every = [weight for group in groups for weight in group]
    yield _State(_trained_name(run), tuple(width * part * run.ranks for part in parts))
    yield _State("gradient bucket", (width * BUCKET * (2 if run.overlap_comm else 1),), phases=TRAIN)
    if run.zero_stage == 1:
        # Every rank keeps all gradients until `step` reduces them.
        yield _State("gradients", tuple(width * weight.numel for weight in every), phases=TRAIN)
    elif not run.adam_offload:
        yield _State("gradients", tuple(width * part for part in parts), phases=TRAIN)
        # A tensor that lies in the parts of two ranks has its whole gradient on both.
        split = max(0, sum(_held_by_most(run, groups, parts)) - sum(parts))
        yield _State("gradients of tensors that ranks share", (width * split,), phases=TRAIN)
    else:
        sums = tuple(width * numel for numel in _held_by_most(run, groups, parts))
        yield _State("offloaded sums of gradients", sums, "host", PHASES - {"load"}, pinned=True)
    if run.adam_offload:
        largest = width * max(weight.numel for weight in every)
        yield _State("offload buffer", (largest,), asleep="stays")
        yield _State("offload buffer", (largest,), "host", pinned=True)
        yield _State("offloaded weights", tuple(width * part for part in parts), "host", pinned=True)
        yield _State("offloaded gradients", tuple(4 * part for part in parts), "host", pinned=True)
    yield from _optimizer(run, parts, pinned_master=True)


def _sharded(run: ModelRun, groups: list[list[Weight]]) -> Iterator[_State]:
    """Stage 3: everything in parts, each tensor's own padded to the ranks; gradients and the bucket always there."""
    width = BYTES[run.dtype]
    parts = [sum(math.ceil(weight.numel / run.ranks) for weight in group) for group in groups]
    total = sum(parts)
    gradients = BYTES[run.grad_accum_dtype or run.dtype] * total
    yield _State(_trained_name(run), (width * total,))
    yield _State("gradient bucket", (width * BUCKET,), asleep="gone")
    if run.adam_offload:
        yield _State("offloaded sums of gradients", (gradients,), "host", pinned=True)
        yield _State("offloaded gradients", tuple(4 * part for part in parts), "host", pinned=True)
    else:
        yield _State("gradients", (gradients,))
    yield from _optimizer(run, parts, pinned_master=False)


def _optimizer(run: ModelRun, parts: list[int], *, pinned_master: bool) -> Iterator[_State]:
    master, place = tuple(4 * part for part in parts), "host" if run.adam_offload else "gpu"
    offloaded: Place = "host" if place == "host" else "gpu"
    yield _State("master weights", master, offloaded, pinned=run.adam_offload and pinned_master)
    yield _State("optimizer", _moments(run, parts), offloaded, phases=PHASES - {"load"})


def _moments(run: ModelRun, numels: list[int]) -> tuple[int, ...]:
    """Two for each number, in float32, or in a byte each with a float32 for each block."""
    if not run.eight_bit:
        return tuple(4 * numel for numel in numels) * 2
    small = tuple(4 * numel for numel in numels if numel < SMALLEST_8BIT)
    large = [numel for numel in numels if numel >= SMALLEST_8BIT]
    return (small + tuple(large) + tuple(4 * math.ceil(numel / BLOCK_8BIT) for numel in large)) * 2


def _part(group: list[Weight], ranks: int) -> int:
    """Numbers of a flat group on each rank: DeepSpeed pads it to two for each."""
    return 2 * math.ceil(sum(weight.numel for weight in group) / (2 * ranks))


def _held_by_most(run: ModelRun, groups: list[list[Weight]], parts: list[int]) -> list[int]:
    """Sizes of the tensors that lie in a rank's parts, wholly or not, for the rank with the most of them."""
    held: list[list[int]] = [[] for _ in range(run.ranks)]
    for group, part in zip(groups, parts, strict=True):
        start = 0
        for weight in _in_turns(group, run.ranks) if run.zero_stage == 2 else group:
            for rank in range(start // part, (start + weight.numel - 1) // part + 1):
                held[rank].append(weight.numel)
            start += weight.numel
    return max(held, key=sum)


def _in_turns(group: list[Weight], ranks: int) -> list[Weight]:
    """The order of `round_robin_gradients`: each rank's part has each `ranks`-th tensor."""
    return [weight for rank in range(ranks) for weight in group[rank::ranks]]
