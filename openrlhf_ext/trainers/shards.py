"""What one rank does with the optimizer steps it is given: the same code in RL workers and in the supervised loop."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.batch.types import TrainShard
from openrlhf_ext.ports import Objective, TrainEngine
from openrlhf_ext.types import Report, merge_reports


def run_steps(engine: TrainEngine, shards: Sequence[TrainShard], objective: Objective) -> Report:
    """Take one optimizer step per shard, in order; the report is merged over micro-batches and steps.

    Every rank must be given as many shards, each with as many micro-batches.
    """
    reports: list[Report] = []
    for shard in shards:
        for micro in shard.micro_batches:
            reports.append(engine.forward_backward(micro, objective, shard.denominators))
        reports.append(engine.step())
    return merge_reports(reports)
