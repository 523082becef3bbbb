"""The ports of the driver, implemented by worker groups and engines on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import ray
import torch
from torch import Tensor

from openrlhf_ext.batch.pad import Tokens, padded, row_lengths
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import inference_split, scatter_rows, scatter_whole_rows
from openrlhf_ext.batch.types import MicroBatch, OptimizerStep, TokenBatch
from openrlhf_ext.cluster.generator import RemoteGenerator
from openrlhf_ext.cluster.phases import Phase, Phases
from openrlhf_ext.cluster.train_worker import SCORERS, EngineLinks
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.cluster.wire import Sealed
from openrlhf_ext.cluster.worker_group import WorkerGroup
from openrlhf_ext.ports import Objective
from openrlhf_ext.track.checkpoints import CheckpointContent
from openrlhf_ext.trainers.answering import collected, dealt
from openrlhf_ext.types import Report, RolloutKey, Sampling, merge_reports

Stored: TypeAlias = tuple[ray.ObjectRef, int]
"""An object that lists what the ranks of a node are given, and the place of one rank's own in it."""


def stored_by_node(given: Sequence[Any], nodes: Sequence[str]) -> list[Stored]:
    """What each rank is `given`, in the object store: one object for all the ranks of a node, since each costs the
    driver a millisecond.
    """
    ranks_on = {node: [rank for rank, own in enumerate(nodes) if own == node] for node in dict.fromkeys(nodes)}
    stored = {node: ray.put([given[rank] for rank in ranks]) for node, ranks in ranks_on.items()}
    return [(stored[node], ranks_on[node].index(rank)) for rank, node in enumerate(nodes)]


class StoredShares:
    """Batches cut for ranks and put into the object store. The latest one's are kept: the policy and its reference are
    asked about the same batch. It belongs to the roles that one thread asks.
    """

    def __init__(self, split: SplitSettings) -> None:
        self._split = split
        self._batch: TokenBatch | None = None
        self._by_nodes: dict[tuple[str, ...], tuple[list[MicroBatch], list[Stored]]] = {}

    def of(self, batch: TokenBatch, nodes: tuple[str, ...]) -> tuple[list[MicroBatch], list[Stored]]:
        """The rows of each rank, here and in the store; `nodes` are where the ranks are."""
        if batch is not self._batch:
            self._batch, self._by_nodes = batch, {}
        if nodes not in self._by_nodes:
            shares = inference_split(batch, replace(self._split, ranks=len(nodes)))
            self._by_nodes[nodes] = [asked.block for asked in shares], stored_by_node(shares, nodes)
        return self._by_nodes[nodes]


class RemoteModel:
    """A worker group that is asked about batches, which `shares` cuts for its ranks."""

    def __init__(self, group: WorkerGroup, shares: StoredShares, phases: Phases) -> None:
        self.group = group
        self._shares = shares
        self._phases = phases
        self._phase: Literal["score", "train"] = "score" if group.name in SCORERS else "train"

    @property
    def phases(self) -> Phases:
        return self._phases

    def _ask(
        self, batch: TokenBatch, what: str, temperature: float = 1.0, *, adapters: bool = True
    ) -> tuple[list[MicroBatch], list[Tensor]]:
        """The rows of each rank, and its answer."""
        blocks, stored = self._shares.of(batch, self.group.nodes)
        calls = [
            worker.answer.remote(*own, temperature, adapters)
            for worker, own in zip(self.group.workers, stored, strict=True)
        ]
        what = f"{what} of {batch.rows} sequences by the {self.group.name}"
        answers = self.group.collect(calls, what, self._phase)
        return blocks, answers


class RemoteReference(RemoteModel):
    """`LogprobRole` over a worker group; with `adapters` False, what that group's model was before it learned.

    The student is one too; it is asked in SCORE.
    """

    def __init__(self, group: WorkerGroup, shares: StoredShares, phases: Phases, *, adapters: bool = True) -> None:
        super().__init__(group, shares, phases)
        self._adapters = adapters

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        self._phases.enter(self._phase)
        micros, answers = self._ask(batch, "log-probs", temperature, adapters=self._adapters)
        return scatter_rows(micros, answers, batch.rows, batch.action_BA.shape[1])


class RemoteTrained(RemoteModel):
    """`TrainRole` over a worker group."""

    # Files need this model alone. They are written after a publish and read before one: to enter TRAIN for them
    # would send engines away whose weights are about to be used.
    file_phase: Phase
    model_folder: str
    """Beside the state of a checkpoint."""

    def __init__(self, group: WorkerGroup, shares: StoredShares, phases: Phases, content: CheckpointContent) -> None:
        super().__init__(group, shares, phases)
        self._content = content

    @property
    def ranks(self) -> int:
        return self.group.ranks

    def update(self, steps: Sequence[OptimizerStep], objective: Objective) -> Report:
        self._phases.enter("train")
        stored, sealed = stored_by_node(list(zip(*steps, strict=True)), self.group.nodes), Sealed.of(objective)
        calls = [worker.update.remote(*own, sealed) for worker, own in zip(self.group.workers, stored, strict=True)]
        return merge_reports(
            self.group.collect(calls, f"{len(steps)} optimizer steps of the {self.group.name}", "train")
        )

    def save(self, folder: Path) -> None:
        if self._content.state:
            self._phases.enter(self.file_phase)
            calls = [worker.save.remote(str(folder.absolute())) for worker in self.group.workers]
            self.group.collect(calls, f"the {self.group.name} to be saved under {folder}", "save")
        if self._content.model:
            self.export(folder.with_name(self.model_folder))

    def load(self, folder: Path) -> None:
        self._phases.enter(self.file_phase)
        calls = [worker.load.remote(str(folder.absolute())) for worker in self.group.workers]
        self.group.collect(calls, f"the {self.group.name} to be loaded from {folder}", "load")

    def export(self, folder: Path) -> None:
        self._phases.enter(self.file_phase)
        calls = [worker.export.remote(str(folder.absolute())) for worker in self.group.workers]
        self.group.collect(calls, f"the {self.group.name}'s model to be written to {folder}", "save")

    def export_adapters(self, folder: Path) -> None:
        """The adapters alone, as peft writes them."""
        self._phases.enter(self.file_phase)
        calls = [worker.export_adapters.remote(str(folder.absolute())) for worker in self.group.workers]
        self.group.collect(calls, f"the adapters to be written to {folder}", "save")


class RemotePolicy(RemoteTrained):
    """`PolicyRole` over a worker group that feeds the generator's engines."""

    file_phase, model_folder = "publish", "model"

    def __init__(
        self,
        group: WorkerGroup,
        shares: StoredShares,
        phases: Phases,
        content: CheckpointContent,
        generator: RemoteGenerator,
        links: EngineLinks,
    ) -> None:
        super().__init__(group, shares, phases, content)
        self._generator = generator
        self._own = RemoteReference(group, shares, phases)
        gather([worker.link.remote(links) for worker in group.workers], "the policy to meet the engines")

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        return self._own.logprobs(batch, temperature)

    def publish(self, version: int) -> Report:
        self._phases.enter("publish")
        calls = [worker.publish.remote(version) for worker in self.group.workers]
        self.group.collect(calls, "the weights to reach the engines", "publish")
        self._generator.version = version
        return {}


class RemoteCritic(RemoteTrained):
    """`CriticRole` over a worker group."""

    file_phase, model_folder = "critic_files", "critic_model"

    def values(self, batch: TokenBatch) -> Tensor:
        self._phases.enter("train")
        micros, answers = self._ask(batch, "values")
        return scatter_rows(micros, answers, batch.rows, batch.action_BA.shape[1])


class RemoteLearner(RemoteTrained):
    """`SupervisedRole` over a worker group."""

    # The model of a checkpoint stands beside the state, as in `trainers.local`.
    file_phase, model_folder = "train", "model"

    def logprobs(self, batch: TokenBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        micros, answers = self._ask(batch, "log-probs", temperature, adapters=adapters)
        return scatter_rows(micros, answers, *batch.action_BA.shape)

    def scores(self, batch: TokenBatch) -> Tensor:
        return scatter_whole_rows(*self._ask(batch, "scores"), batch.rows)

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, *, end: int, rows: int
    ) -> list[list[int]]:
        shares = dealt(prompts, self.ranks)
        calls = [
            worker.generate.remote([prompts[i] for i in own], [seeds[i] for i in own], sampling, end, rows)
            for worker, own in zip(self.group.workers, shares, strict=True)
        ]
        return collected(shares, self.group.collect(calls, f"{len(prompts)} answers of the model", "evaluate"))


class RemoteScorer(RemoteModel):
    """A frozen reward model over a worker group (`rewards.model.Scorer`)."""

    def scores(self, rows: Sequence[Tokens]) -> list[float]:
        """The model's number for each row of token ids, read at its last token."""
        self._phases.enter("score")
        batch = _plain_batch(rows)
        return scatter_whole_rows(*self._ask(batch, "scores"), batch.rows)[:, 0].tolist()


def _plain_batch(rows: Sequence[Tokens]) -> TokenBatch:
    """Rows of tokens, none of which anybody sampled."""
    lengths_B = row_lengths(rows)
    shape_BA = (len(rows), int(lengths_B.max()) - 1)
    return TokenBatch(
        keys=tuple(RolloutKey("", index) for index in range(len(rows))),
        tokens_BT=torch.from_numpy(padded(rows, 0, np.int32)),
        lengths_B=torch.from_numpy(lengths_B),
        action_BA=torch.zeros(shape_BA, dtype=torch.bool),
        sampler_logp_BA=torch.zeros(shape_BA),
    )
