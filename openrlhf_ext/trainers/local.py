"""A model in training in this very process: the supervised loop on one device needs no workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import inference_split, scatter_rows, scatter_whole_rows
from openrlhf_ext.batch.types import MicroBatch, OptimizerStep, TokenBatch
from openrlhf_ext.ports import Objective, TrainEngine
from openrlhf_ext.trainers.shards import run_steps
from openrlhf_ext.types import Report


class LocalRole:
    """One engine of one rank as a `SupervisedRole`. `split` cuts the batches it is asked about.

    Everything is done inside `phase(name)`, with the planner's names: train, evaluate, save, load.
    """

    def __init__(
        self,
        engine: TrainEngine,
        split: SplitSettings,
        phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ) -> None:
        assert engine.world_size == 1, "several ranks are a worker group"
        self._engine = engine
        self._split = split
        self._phase = phase

    @property
    def ranks(self) -> int:
        return 1

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        with self._phase("train"):
            return run_steps(self._engine, [shard for (shard,) in steps], objective)

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        micros, outputs = self._answers(batch, temperature, adapters)
        return scatter_rows(micros, outputs, *batch.action_BA.shape)

    def scores(self, batch: TokenBatch) -> Tensor:
        return scatter_whole_rows(*self._answers(batch), batch.rows)

    def _answers(
        self, batch: TokenBatch, temperature: float = 1.0, adapters: bool = True
    ) -> tuple[list[MicroBatch], list[Tensor]]:
        (micros,) = inference_split(batch, self._split)
        with self._phase("evaluate"):
            return micros, [self._engine.forward(micro, temperature, adapters=adapters) for micro in micros]

    def save(self, folder: Path) -> None:
        with self._phase("save"):
            self._engine.save(folder)

    def load(self, folder: Path) -> None:
        with self._phase("load"):
            self._engine.load(folder)

    def export(self, folder: Path) -> None:
        with self._phase("save"):
            self._engine.export(folder)

    def export_adapters(self, folder: Path) -> None:
        with self._phase("save"):
            self._engine.export_adapters(folder)
