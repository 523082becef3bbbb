"""The ports of the driver, implemented by worker groups and engines on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from torch import Tensor

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import inference_split, scatter_rows
from openrlhf_ext.batch.types import OptimizerStep, TokenBatch
from openrlhf_ext.cluster.generator import RemoteGenerator
from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.train_worker import EngineLinks
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.cluster.worker_group import WorkerGroup
from openrlhf_ext.ports import Objective
from openrlhf_ext.types import Report, merge_reports


class RemoteReference:
    """`LogprobRole` over a worker group. `split` says how a batch is cut (its ranks are the group's)."""

    def __init__(self, group: WorkerGroup, split: SplitSettings, phases: Phases) -> None:
        self.group = group
        self._split = replace(split, ranks=group.ranks)
        self._phases = phases

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        self._phases.enter("train")
        by_rank = inference_split(batch, self._split)
        calls = [
            worker.logprobs.remote(micros, temperature)
            for worker, micros in zip(self.group.workers, by_rank, strict=True)
        ]
        outputs = gather(calls, f"log-probs of {batch.rows} sequences by the {self.group.name}")
        return scatter_rows(
            chain.from_iterable(by_rank), chain.from_iterable(outputs), batch.rows, batch.action_BA.shape[1]
        )


@dataclass(frozen=True, slots=True)
class CheckpointContent:
    """What a checkpoint of the policy holds: the state to resume from, a Hugging Face folder, or both."""

    state: bool = True
    model: bool = False


class RemotePolicy(RemoteReference):
    """`PolicyRole` over a worker group that feeds the generator's engines."""

    def __init__(
        self,
        group: WorkerGroup,
        split: SplitSettings,
        phases: Phases,
        generator: RemoteGenerator,
        links: EngineLinks,
        content: CheckpointContent,
    ) -> None:
        super().__init__(group, split, phases)
        self._generator = generator
        self._content = content
        gather([worker.link.remote(links) for worker in group.workers], "the policy to meet the engines")

    @property
    def ranks(self) -> int:
        return self.group.ranks

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        self._phases.enter("train")
        by_rank = list(zip(*steps, strict=True))
        calls = [
            worker.update.remote(shards, objective) for worker, shards in zip(self.group.workers, by_rank, strict=True)
        ]
        return merge_reports(gather(calls, f"{len(steps)} optimizer steps"))

    def publish(self, version: int) -> Report:
        self._phases.enter("publish")
        gather([worker.publish.remote(version) for worker in self.group.workers], "the weights to reach the engines")
        self._generator.version = version
        return {}

    # Files need the policy alone. They are written after a publish and read before one: to enter TRAIN for them
    # would send engines away whose weights are about to be used.

    def save(self, folder: Path) -> None:
        if self._content.state:
            self._phases.enter("publish")
            calls = [worker.save.remote(str(folder.absolute())) for worker in self.group.workers]
            gather(calls, f"the policy to be saved under {folder}")
        if self._content.model:
            self.export(folder.with_name("model"))

    def load(self, folder: Path) -> None:
        self._phases.enter("publish")
        calls = [worker.load.remote(str(folder.absolute())) for worker in self.group.workers]
        gather(calls, f"the policy to be loaded from {folder}")

    def export(self, folder: Path) -> None:
        self._phases.enter("publish")
        calls = [worker.export.remote(str(folder.absolute())) for worker in self.group.workers]
        gather(calls, f"the model to be written to {folder}")
