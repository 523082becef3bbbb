"""The Ray actor of one rank: a TrainEngine, what the roles ask of it, and its end of the weight transfer.

DeepSpeed and transformers are imported when the model is built, inside the worker's process and
after its environment is set; the driver never loads them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray
import torch

from openrlhf_ext.batch.split import joined_rows
from openrlhf_ext.batch.types import Share, TrainShard
from openrlhf_ext.cluster.wire import Sealed, tensors_travel_as_arrays
from openrlhf_ext.device import Device
from openrlhf_ext.device.interfaces import meets_over
from openrlhf_ext.device.peaks import Measured, PeakMeter
from openrlhf_ext.device.rendezvous import free_port
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.rollout.transfer import Bucket, Rendezvous, Transport, make_sender, packed, unpack
from openrlhf_ext.trainers.shards import run_steps
from openrlhf_ext.types import Report, Sampling

if TYPE_CHECKING:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine

T = TypeVar("T")

SCORERS = frozenset({"reward", "student"})
"""The worker groups that are asked in SCORE."""


@dataclass(frozen=True, slots=True)
class EngineLinks:
    """The engines that this policy feeds (Ray handles of VllmEngine), and how."""

    engines: Sequence[Any]
    transport: Transport
    bucket_bytes: int
    tensor_parallel_size: int

    def call(self, bucket: Bucket) -> _Loading:
        stored = ray.put(bucket)  # once, however many engines read it
        return _Loading([engine.load_bucket.remote(stored) for engine in self.engines])


@dataclass(frozen=True, slots=True)
class _Loading:
    calls: Sequence[ray.ObjectRef]

    def wait(self) -> None:
        ray.get(list(self.calls))


def free_endpoint() -> tuple[str, int]:
    """This node's address and a port that is free on it, for a rendezvous."""
    host = ray.util.get_node_ip_address()
    return host, free_port(host)


class TrainWorker:
    """One rank of a worker group. Answers that are Measured raise OutOfMemory where there is not enough of it."""

    engine: DeepSpeedEngine
    links: EngineLinks

    def __init__(self, role: str, rank: int, world_size: int, device: Device) -> None:
        self.role, self.rank, self.world_size, self.device = role, rank, world_size, device
        self._meter = PeakMeter(device, role)
        tensors_travel_as_arrays()

    @ray.method
    def endpoint(self) -> tuple[str, int]:
        return free_endpoint()

    @ray.method
    def build(self, endpoint: tuple[str, int], model: ModelSpec, spec: EngineSpec) -> Measured[None]:
        return self._measured("load", lambda: self._build(endpoint, model, spec))

    def _build(self, endpoint: tuple[str, int], model: ModelSpec, spec: EngineSpec) -> None:
        from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine
        from openrlhf_ext.engine.process import init_process

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        host, port = endpoint
        init_process(self.device, self.rank, self.world_size, 0, host, port)
        self.engine = DeepSpeedEngine(model, spec, self.device)

    @ray.method
    def network(self) -> tuple[str, str]:
        """This machine's name, and what its collectives go over."""
        return socket.gethostname(), meets_over(self.device)

    @ray.method
    def answer(self, listed: Sequence[Share], own: int, temperature: float, adapters: bool) -> Measured[torch.Tensor]:
        """What the model says of each row: log-probs, values or scores. Of what is listed for this node's ranks."""
        asked = listed[own]

        def ask() -> torch.Tensor:
            micros = asked.micro_batches
            return joined_rows(asked, [self.engine.forward(each, temperature, adapters=adapters) for each in micros])

        outputs = self._measured("score" if self.role in SCORERS else "train", ask)
        if not self.engine.spec.trainable:
            self.device.empty_cache()  # the next to compute on this GPU may be another process
        return outputs

    @ray.method
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, end: int, rows: int
    ) -> Measured[list[list[int]]]:
        return self._measured("evaluate", lambda: self.engine.generate(prompts, seeds, sampling, end=end, rows=rows))

    @ray.method
    def update(self, listed: Sequence[Sequence[TrainShard]], own: int, objective: Sealed) -> Measured[Report]:
        return self._measured("train", lambda: run_steps(self.engine, listed[own], objective.open()))

    @ray.method
    def link(self, links: EngineLinks) -> None:
        """Meet the engines that `publish` will feed."""
        self.links = links
        rendezvous, joining = None, []
        if links.transport == "broadcast" and self.rank == 0:
            tp = links.tensor_parallel_size
            rendezvous = Rendezvous(*free_endpoint(), rank=0, world_size=1 + len(links.engines) * tp)
            joining = [e.join.remote(rendezvous.of_engine(i, tp)) for i, e in enumerate(links.engines)]
        self.sender = make_sender(links.transport, rank=self.rank, all_gather=self._all_gather, rendezvous=rendezvous)
        ray.get(joining)

    @ray.method
    def publish(self, version: int) -> Measured[None]:
        """Stream the weights to the engines bucket by bucket; collective over the ranks."""
        return self._measured("publish", lambda: self._publish(version))

    def _publish(self, version: int) -> None:
        engines = self.links.engines if self.rank == 0 else ()
        ray.get([engine.begin_update.remote() for engine in engines])
        for bucket in self.engine.export_weights(self.links.bucket_bytes):
            self.sender.send(bucket, self.links.call)
        ray.get([engine.end_update.remote(version) for engine in engines])

    @ray.method
    def feed(self, receivers: Sequence[Any], mixup: float) -> Measured[None]:
        """Move the model of these workers towards this one, bucket by bucket; collective over the ranks."""

        def stream() -> None:
            for bucket in self.engine.export_weights(self.links.bucket_bytes):
                if self.rank == 0:
                    stored = ray.put(packed(bucket))  # once, however many ranks read it
                    ray.get([worker.blend.remote(stored, mixup) for worker in receivers])

        return self._measured("train", stream)

    @ray.method
    def blend(self, bucket: Bucket, mixup: float) -> Measured[None]:
        assert isinstance(bucket.data, np.ndarray)
        flat = torch.from_numpy(bucket.data.copy())  # what lies in the object store cannot be written to
        return self._measured("train", lambda: self.engine.blend(unpack(flat, bucket.table), mixup))

    @ray.method
    def load_weights(self, folder: str) -> Measured[None]:
        """What `export` wrote."""
        return self._measured("load", lambda: self.engine.load_weights(Path(folder)))

    def _measured(self, phase: str, work: Callable[[], T]) -> Measured[T]:
        with self._meter(phase):
            answer = work()
        return Measured(answer, self._meter.take())

    def _all_gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    @ray.method
    def save(self, folder: str) -> Measured[None]:
        return self._measured("save", lambda: self.engine.save(Path(folder)))

    @ray.method
    def load(self, folder: str) -> Measured[Any]:
        return self._measured("load", lambda: self.engine.load(Path(folder)))

    @ray.method
    def export(self, folder: str) -> Measured[None]:
        return self._measured("save", lambda: self.engine.export(Path(folder)))

    @ray.method
    def export_adapters(self, folder: str) -> Measured[None]:
        return self._measured("save", lambda: self.engine.export_adapters(Path(folder)))

    @ray.method
    def sleep(self) -> None:
        self.engine.sleep()

    @ray.method
    def wake(self) -> None:
        self.engine.wake()
