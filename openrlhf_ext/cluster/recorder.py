"""Rollouts on their way to disk, in a process of their own: to compress them costs more than all else a driver does."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.track.packed_step import PackedStep, PackedWriter
from openrlhf_ext.track.rollouts import RecordedStep

LEFT_BEHIND_AFTER = 30.0
"""Seconds that a run which has failed waits for its last rollouts to be written."""


class RemoteRecorder:
    """A `Recorder` into `folder` on this node. One step at most is under way; leaving the context waits for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(PackedWriter)
        self._actor = actor.options(num_cpus=0, scheduling_strategy=here).remote()
        self._writing: list[ray.ObjectRef] = []

    def write(self, step: int, recorded: RecordedStep) -> None:
        self.settle()
        self._writing = [self._actor.write.remote(self._folder, step, PackedStep.of(recorded))]

    def settle(self) -> None:
        writing, self._writing = self._writing, []
        gather(writing, "the rollouts to be written")

    def __enter__(self) -> RemoteRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.settle()
        elif self._writing:  # the run has failed already: its last rollouts are worth a moment, not another error
            ray.wait(self._writing, timeout=LEFT_BEHIND_AFTER)
