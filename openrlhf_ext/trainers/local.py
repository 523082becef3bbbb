"""A model in training in this very process, whose ranks, where there are several, all run the same loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import inference_split, joined_rows, scatter_rows, scatter_whole_rows
from openrlhf_ext.batch.types import MicroBatch, OptimizerStep, TokenBatch
from openrlhf_ext.ports import Objective, TrainEngine
from openrlhf_ext.track.checkpoints import CheckpointContent
from openrlhf_ext.trainers.answering import collected, dealt
from openrlhf_ext.trainers.shards import run_steps
from openrlhf_ext.types import Report, Sampling, merge_reports

MODEL = "model"
"""The exported model of a checkpoint, beside the state."""


class LocalRole:
    """One engine, which is one rank, as a `SupervisedRole`. `split` cuts the batches it is asked about.

    With several ranks every process calls the same methods with the same arguments, works on its own part, and is
    given the answer of all. Everything is done inside `phase(name)`, with the planner's names: train, evaluate, save,
    load.
    """

    def __init__(
        self,
        engine: TrainEngine,
        split: SplitSettings,
        phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
        content: CheckpointContent | None = None,
    ) -> None:
        self._engine = engine
        self._split = replace(split, ranks=engine.world_size)
        self._phase = phase
        self._content = content or CheckpointContent()

    @property
    def ranks(self) -> int:
        return self._engine.world_size

    @property
    def leads(self) -> bool:
        return self._engine.rank == 0

    def together(self, value: Any) -> list[Any]:
        """What the processes of all ranks brought, in their order."""
        return [value] if self._engine.world_size == 1 else self._engine.gather(value)

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        with self._phase("train"):
            report = run_steps(self._engine, [shards[self._engine.rank] for shards in steps], objective)
            return merge_reports(self.together(report))

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        micros, outputs = self._answers(batch, temperature, adapters)
        return scatter_rows(micros, outputs, *batch.action_BA.shape)

    def scores(self, batch: TokenBatch) -> Tensor:
        return scatter_whole_rows(*self._answers(batch), batch.rows)

    def _answers(
        self, batch: TokenBatch, temperature: float = 1.0, adapters: bool = True
    ) -> tuple[list[MicroBatch], list[Tensor]]:
        shares = inference_split(batch, self._split)
        own = shares[self._engine.rank]
        with self._phase("evaluate"):
            outputs = [self._engine.forward(micro, temperature, adapters=adapters) for micro in own.micro_batches]
            return [each.block for each in shares], self.together(joined_rows(own, outputs))

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, *, end: int, rows: int
    ) -> list[list[int]]:
        shares = dealt(prompts, self.ranks)
        own = shares[self._engine.rank]
        with self._phase("evaluate"):
            answers = self._engine.generate(
                [prompts[i] for i in own], [seeds[i] for i in own], sampling, end=end, rows=rows
            )
            return collected(shares, self.together(answers))

    def save(self, folder: Path) -> None:
        self.together(None)  # rank 0 has made the folder when the others arrive here
        if self._content.state:
            with self._phase("save"):
                self._engine.save(folder)
        if self._content.model:
            self.export(folder.with_name(MODEL))

    def load(self, folder: Path) -> None:
        with self._phase("load"):
            self._engine.load(folder)

    def export(self, folder: Path) -> None:
        with self._phase("save"):
            self._engine.export(folder)

    def export_adapters(self, folder: Path) -> None:
        with self._phase("save"):
            self._engine.export_adapters(folder)
