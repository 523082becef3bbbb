"""The one model of a supervised command on several ranks."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.placement import Demand, reserve
from openrlhf_ext.cluster.roles import CheckpointContent, RemoteLearner
from openrlhf_ext.cluster.worker_group import WorkerGroup, worker_environment
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.track.memory import MemoryLog

NAME = "model"


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """`split` cuts the batches it is asked about; `threads` are those of each rank."""

    device: Device
    ranks: int
    model: ModelSpec
    engine: EngineSpec
    split: SplitSettings
    threads: int
    content: CheckpointContent = CheckpointContent()  # noqa: RUF009 (frozen)


def build_learner(spec: LearnerSpec, memory: MemoryLog) -> RemoteLearner:
    """Start the ranks and return when all are ready. Call inside a `ray_session`.

    Raises ResourceError where the cluster has fewer devices, DataError for a model that cannot be loaded.
    """
    slots = reserve([Demand(NAME, NAME, spec.ranks)], gpu=spec.device.count > 0)
    environment = worker_environment(spec.device, spec.threads)
    group = WorkerGroup(NAME, slots[NAME], spec.device, spec.model, spec.engine, environment, memory)
    group.collect(group.started, "the model to load", "load")
    return RemoteLearner(group, spec.split, Phases({}), spec.content)
