"""The one model of a supervised command on several ranks."""

from __future__ import annotations

from openrlhf_ext.cluster.learner_spec import LearnerSpec
from openrlhf_ext.cluster.node_files import check_files
from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.placement import reserve
from openrlhf_ext.cluster.roles import RemoteLearner, StoredShares
from openrlhf_ext.cluster.worker_group import WorkerGroup, worker_environment
from openrlhf_ext.plan.layout import Demand
from openrlhf_ext.track.memory import MemoryLog

NAME = "model"


def build_learner(spec: LearnerSpec, memory: MemoryLog) -> RemoteLearner:
    """Start the ranks and return when all are ready. Call inside a `ray_session`.

    Raises ResourceError where the cluster has fewer devices, DataError for a model that cannot be loaded,
    or that a node lacks.
    """
    slots = reserve([Demand(NAME, NAME, spec.ranks)], gpu=spec.device.count > 0)
    check_files({NAME: spec.model.files}, slots)
    environment = worker_environment(spec.device, spec.threads)
    group = WorkerGroup(NAME, slots[NAME], spec.device, spec.model, spec.engine, environment, memory)
    group.loaded()
    return RemoteLearner(group, StoredShares(spec.split), Phases({}), spec.content)
