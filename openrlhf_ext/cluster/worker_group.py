"""The ranks of one model: started together, asked together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from openrlhf_ext.cluster.placement import Slot
from openrlhf_ext.cluster.train_worker import TrainWorker
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.track.memory import MemoryLog, Moment
from openrlhf_ext.track.progress import console

SPINS = "20000"
"""Turns that a thread waits awake for the next piece of work: some tens of microseconds, then it sleeps."""


def worker_environment(device: Device, threads: int, *, alone: bool = True) -> dict[str, str]:
    """What a worker's process must have before it imports torch.

    `alone` says that other roles rest while it computes. Threads that wait awake then make a fifth of a step's
    difference (docs/benchmarks.md); where another process needs the core they would cost several times that.
    """
    waiting = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS)} if alone else {"OMP_WAIT_POLICY": "PASSIVE"}
    threading = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **waiting}
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    quiet |= {"PYTHONWARNINGS": "ignore::FutureWarning"}
    return {**device.environment(), **threading, **quiet}


class WorkerGroup:
    """The processes of one role. They load in parallel with other groups: `started` is what to wait for, and then
    `loaded`. `nodes` are where the ranks are.
    """

    def __init__(
        self,
        name: str,
        slots: Sequence[Slot],
        device: Device,
        model: ModelSpec,
        spec: EngineSpec,
        environment: Mapping[str, str],
        memory: MemoryLog,
    ) -> None:
        self.name = name
        self._memory = memory
        actor = ray.remote(TrainWorker)
        self.workers = [
            actor.options(**slot.options, runtime_env={"env_vars": dict(environment)}).remote(
                name, rank, len(slots), device
            )
            for rank, slot in enumerate(slots)
        ]
        self.nodes = tuple(slot.node for slot in slots)
        endpoint = self.workers[0].endpoint.remote()
        self.started = [worker.build.remote(endpoint, model, spec) for worker in self.workers]

    @property
    def ranks(self) -> int:
        return len(self.workers)

    def collect(self, calls: Sequence[ray.ObjectRef], what: str, phase: str) -> list[Any]:
        """The answers of calls that measure themselves, in order; what they measured goes to the memory log."""
        answers = gather(calls, what, at=Moment(self.name, phase))
        for measured in answers:
            self._memory.note(self.name, measured.peaks)
        return [measured.answer for measured in answers]

    def loaded(self) -> None:
        """Wait until all ranks are; where they are on several machines, say what they meet over."""
        self.collect(self.started, f"the {self.name} to load", "load")
        if len(set(self.nodes)) > 1:
            networks = gather([worker.network.remote() for worker in self.workers], "the ranks' networks")
            over = ", ".join(f"{host} over {way}" for host, way in dict.fromkeys(networks))
            console.print(f"{self.name}: {self.ranks} ranks meet: {over}", markup=False, soft_wrap=True)

    def sleep(self) -> None:
        gather([worker.sleep.remote() for worker in self.workers], f"the {self.name} to leave the GPU")

    def wake(self) -> None:
        gather([worker.wake.remote() for worker in self.workers], f"the {self.name} to return to the GPU")
