"""The ranks of one model: started together, asked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from openrlhf_ext.cluster.placement import Slot
from openrlhf_ext.cluster.train_worker import TrainWorker
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec


def worker_environment(device: Device, threads: int) -> dict[str, str]:
    """What a worker's process must have before it imports torch."""
    # Threads that wait for work must not spin: on a CPU the roles take turns on the same cores.
    threading = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    quiet |= {"PYTHONWARNINGS": "ignore::FutureWarning"}
    return {**device.environment(), **threading, **quiet}


class WorkerGroup:
    """The processes of one role. They load in parallel with other groups: `started` is what to wait for."""

    def __init__(
        self,
        name: str,
        slots: Sequence[Slot],
        device: Device,
        model: ModelSpec,
        spec: EngineSpec,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        actor = ray.remote(TrainWorker)
        self.workers = [
            actor.options(**slot.options, runtime_env={"env_vars": dict(environment)}).remote(
                name, rank, len(slots), device
            )
            for rank, slot in enumerate(slots)
        ]
        endpoint = self.workers[0].endpoint.remote()
        self.started = [worker.build.remote(endpoint, model, spec) for worker in self.workers]

    @property
    def ranks(self) -> int:
        return len(self.workers)

    def sleep(self) -> None:
        gather([worker.sleep.remote() for worker in self.workers], f"the {self.name} to leave the GPU")

    def wake(self) -> None:
        gather([worker.wake.remote() for worker in self.workers], f"the {self.name} to return to the GPU")
