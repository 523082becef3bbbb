"""How much of a sharded model is whole at a time under ZeRO-3: the rules of DeepSpeed 0.19.6, played through.

A module's weights are gathered before it computes, the next ones of the recorded order ahead of it, and they are let
go behind it, unless the order uses them again soon (`runtime/zero/partitioned_param_coordinator.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

from openrlhf_ext.plan.parameters import Weight, adapter_parameters, parameters
from openrlhf_ext.plan.types import ModelRun

PREFETCH = 50_000_000
"""Numbers gathered ahead (`stage3_prefetch_bucket_size`), to which the tensor that passes the limit belongs too."""
REUSE = 1_000_000_000
"""What is used again within so many numbers of the order stays (`stage3_max_reuse_distance`)."""
MOST_AHEAD = 1_000_000_000
"""Nothing is gathered ahead where so many numbers are whole already (`stage3_max_live_parameters`)."""

Step = tuple[tuple[str, int], ...]
"""A module's own weights by name, with their sizes; those that are always whole left out, so that many are empty.

They count all the same: more is gathered ahead at every module that is entered, norms and containers too.
"""


def always_whole(weight: Weight, hidden: int) -> bool:
    """`stage3_param_persistence_threshold`, as `engine.deepspeed_config` sets it: norms, biases, small adapters."""
    return weight.numel <= 10 * hidden


def most_gathered(run: ModelRun) -> int:
    """The largest number of weights that are whole at the same time, without those that always are."""
    layers, before, after = _modules(run)
    backward = any(each.backward for each in run.passes) or (run.trainable and not run.passes)
    order = [*before, *(step for layer in layers for step in layer), *after]
    if backward:
        # The head has two names, so all its hooks twice; in a backward pass they come twice again.
        order += (step for step in reversed(after) for _ in range(2))
        for layer in reversed(layers):
            order += (*layer, *reversed(layer)) if run.gradient_checkpointing else reversed(layer)
        if run.lora is None:  # nothing flows back into a frozen embedding
            order += reversed(before)
    return _peak(tuple(order))


def _modules(run: ModelRun) -> tuple[list[list[Step]], list[Step], list[Step]]:
    """The modules of each block, before the blocks and after them, in the order of a forward pass."""
    halves: dict[str, list[Weight]] = {}
    for half in adapter_parameters(run.shape, run.lora, run.kind) if run.lora else ():
        halves.setdefault(half.name.rpartition(".lora_")[0], []).append(half)
    layers: list[list[Step]] = [[] for _ in range(run.shape.layers)]
    before: list[Step] = [(), ()]  # the model and the transformer in it
    after: list[Step] = []
    for module in _by_module(run):
        name = module[0].module
        if "vision_tower" in name or "multi_modal" in name or "norm" in name:
            continue  # no images come; norms are counted with the module behind them
        _, inside, rest = name.partition(".layers.")
        step = _step(run, module)
        if inside:
            adapted = [(), step, (), *(_step(run, [half]) for half in halves[name])] if name in halves else [step]
            empty: list[Step] = [()] * _entered_before(run, name.rpartition(".")[2])
            layers[int(rest.partition(".")[0])] += [*empty, *adapted]
        elif module[0].kind == "embedding":
            before += [step, ()]  # and the rotary one
        else:
            after += [(), step, step]
    if run.kind == "causal_lm" and run.shape.tied:
        after += [(), before[2], before[2]]
    return layers, before, after


def _step(run: ModelRun, module: list[Weight]) -> Step:
    return tuple((w.name, w.numel) for w in module if not always_whole(w, run.shape.hidden))


def _entered_before(run: ModelRun, projection: str) -> int:
    """Norms, activations and containers that are entered between a block's projection and the one before it."""
    norms = run.shape.norms_per_layer
    counts = {
        "q_proj": 3,  # block, norm, attention
        "k_proj": int(run.shape.qk_norm),
        "v_proj": int(run.shape.qk_norm),
        "gate_proj": norms // 2 + 1,
        "up_proj": 1,
        "down_proj": 0,
    }
    return counts.get(projection, 0)


def _by_module(run: ModelRun) -> Iterator[list[Weight]]:
    module: list[Weight] = []
    for weight in parameters(run.shape, run.kind, run.head_dim):
        if module and weight.module != module[0].module:
            yield module
            module = []
        module.append(weight)
    yield module


@lru_cache(maxsize=64)
def _peak(order: tuple[Step, ...]) -> int:
    queue = [(name, size, at) for at, step in enumerate(order) for name, size in step]
    fetched_for = {name: -1 for name, _, _ in queue}
    ends = list(accumulate((sum(size for _, size in step) for step in order), initial=0))
    first_in_queue = list(accumulate((len(step) for step in order), initial=0))
    again = _next_uses(order)
    whole: dict[str, int] = {}
    held = peak = ahead = 0
    for at, step in enumerate(order):
        for name, size in step:
            if name not in whole:
                whole[name] = size
                held += size
            fetched_for[name] = max(fetched_for[name], at)
        ahead, fetching = max(ahead, first_in_queue[at + 1]), 0
        while ahead < len(queue) and fetching < min(MOST_AHEAD - held, PREFETCH):
            name, size, used = queue[ahead]
            fetched_for[name] = max(fetched_for[name], used)
            if name not in whole:
                whole[name] = size
                fetching += size
            ahead += 1
        held += fetching
        peak = max(peak, held)
        for name, _ in step:
            later = again.get((at, name))
            soon = later is not None and ends[later] - ends[at + 1] < REUSE
            if not soon and fetched_for[name] <= at:
                held -= whole.pop(name, 0)
    return peak


def _next_uses(order: tuple[Step, ...]) -> dict[tuple[int, str], int]:
    """When a weight of a step is used next."""
    again: dict[tuple[int, str], int] = {}
    last: dict[str, int] = {}
    for at in range(len(order) - 1, -1, -1):
        for name, _ in order[at]:
            if name in last:
                again[at, name] = last[name]
            last[name] = at
    return again
