"""Our side: the supervised loop's own pieces on one DeepSpeed rank, one epoch a turn.

Steps are of examples of like length, micro-batches of a budget of tokens. dpo's reference is what the command takes by
itself: log-probs that are computed and written before training; a turn computes all of them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import Turn

from sides.gate import Gate
from sides.supervised_rows import MemoryClock, SupervisedWorkload, lengths_of, parts

REFERENCE_PAIRS = 32
"""Of one call for reference log-probs, as the command asks for them."""


def serve(workload: SupervisedWorkload, gate: Gate) -> None:
    import torch

    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.data.length_groups import StepOrder

    torch.set_num_threads(workload.threads)
    memory, model = _open(workload)
    rows = list(workload.rows())
    order = StepOrder(
        [lengths_of(row) for row in rows], batch_size=workload.batch, seed=workload.seed, window=workload.window
    )
    split = SplitSettings(max_tokens=workload.max_tokens)
    examples, to_step, objective, prepare = _task(workload, rows, split)
    for epoch in count():
        if gate.wait() is None:
            return
        memory.start()
        prepare(model)
        phases = {"reference": gate.seconds()} if workload.task == "dpo" else {}
        for index in range(workload.steps):
            chosen = order.rows(epoch * workload.steps + index)
            model.update([to_step([examples[row] for row in chosen])], objective)
        seconds = gate.seconds()
        gate.finish(Turn(seconds, phases | {"train": seconds - sum(phases.values())}, details=memory.read()))


def _open(workload: SupervisedWorkload) -> tuple[MemoryClock, Any]:
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.device.rendezvous import free_port
    from openrlhf_ext.engine.process import init_process
    from openrlhf_ext.engine.spec import EngineSpec
    from openrlhf_ext.models.spec import ModelSpec
    from openrlhf_ext.trainers.local import LocalRole

    device = choose_device("cpu")
    init_process(device, 0, 1, 0, "127.0.0.1", free_port("127.0.0.1"))
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine

    memory = MemoryClock()
    spec = EngineSpec(zero_stage=0, dtype="fp32", lr=workload.lr, lr_scheduler="constant", warmup_ratio=0.0)
    head = {"kind": "reward"} if workload.task == "rm" else {}
    engine: Any = DeepSpeedEngine(ModelSpec(str(workload.model), dtype="fp32", **head), spec, device)
    return memory, LocalRole(engine, SplitSettings(max_tokens=workload.max_tokens))


def _task(
    workload: SupervisedWorkload, rows: Sequence[dict[str, Any]], split: Any
) -> tuple[Sequence[Any], Callable[..., Any], Any, Callable[[Any], None]]:
    """The examples, how some of them become a step, the loss, and what is done before an epoch."""
    from openrlhf_ext.batch.pad import token_batch
    from openrlhf_ext.data.preferences import PreferencePair
    from openrlhf_ext.data.sft import SftExample
    from openrlhf_ext.data.tokenizer import load_tokenizer
    from openrlhf_ext.ops.preference_loss import DpoLossSettings
    from openrlhf_ext.trainers.objectives import SftObjective
    from openrlhf_ext.trainers.pairs import pair_batch, pair_step
    from openrlhf_ext.trainers.preference import DpoObjective, ScoreObjective
    from openrlhf_ext.trainers.supervised import sft_step

    pad = load_tokenizer(str(workload.model)).pad_token_id
    if workload.task == "sft":
        texts = []
        for number, row in enumerate(rows):
            learned = len(row["tokens"]) - row["prompt"]
            mask = (False,) * row["prompt"] + (True,) * learned
            texts.append(SftExample(str(number), tuple(row["tokens"]), mask))
        return texts, lambda some: sft_step(token_batch(some, pad), split, 1), SftObjective(), lambda model: None
    pairs = [
        PreferencePair(str(number), *(tuple(row[name]) for name in ("prompt", "chosen", "rejected")))
        for number, row in enumerate(rows)
    ]
    if workload.task == "rm":
        return pairs, lambda some: pair_step(pair_batch(some, pad), {}, split, 1), ScoreObjective(), lambda model: None
    reference = _Reference(pairs, pad)

    def to_step(some: Sequence[PreferencePair]) -> Any:
        batch = pair_batch(some, pad)
        return pair_step(batch, {"ref_logp": reference.column(batch)}, split, 1)

    return pairs, to_step, DpoObjective(DpoLossSettings(beta=workload.beta)), reference.fill


class _Reference:
    """Log-probs of all pairs, computed anew and kept on disk by every `fill`.

    After the first turn they are those of a model that has learned: as much work, and not dpo's reference.
    """

    def __init__(self, pairs: Sequence[Any], pad: int) -> None:
        from openrlhf_ext.trainers.pairs import pair_batch

        longest_first = sorted(pairs, key=lambda pair: -len(pair.chosen.token_ids))
        self._batches = [pair_batch(part, pad) for part in parts(longest_first, REFERENCE_PAIRS)]
        self._filled: Any = None

    def fill(self, model: Any) -> None:
        from openrlhf_ext.track.reference_cache import ReferenceCache
        from openrlhf_ext.trainers.reference import CachedReference

        with TemporaryDirectory() as folder:
            cache = ReferenceCache(Path(folder), "model")
            self._filled = CachedReference.fill(cache, model, self._batches, lambda done, total: None)

    def column(self, batch: Any) -> Any:
        return self._filled.column(batch)
