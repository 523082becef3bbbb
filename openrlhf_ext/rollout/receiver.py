"""The engine's end of a weight transfer: three backends of vLLM's own weight-transfer interface.

vLLM's worker drives the lifecycle (start, one call per bucket, finish) and it is the same for all
three; they differ in how the bytes of a bucket are come by. vLLM's built-in backends are not used:
their wire formats differ from release to release and none works on a CPU, while the interface
they implement is stable.

Importing this module registers the backends. vLLM's workers import it because `WorkerExtension`
is given as the worker extension class, in whatever process they run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from openrlhf_ext.rollout.transfer import Bucket, Rendezvous, gpu_uuid, join_broadcast, unpack


class WorkerExtension:
    """Adds nothing to vLLM's worker: named so that the worker's process imports this module."""


@dataclass
class Joining(WeightTransferInitInfo):
    rendezvous: Rendezvous


@dataclass
class Update(WeightTransferUpdateInfo):
    bucket: Bucket


class BucketReceiver(WeightTransferEngine[Joining, Update]):
    """Loads buckets of Hugging Face named tensors into the running model, layer by layer.

    vLLM keeps weights packed for its kernels; its layerwise reload collects what arrives for a layer
    (a layer may span buckets) and packs it again when it is complete, into the storage it had.
    """

    init_info_cls = Joining
    update_info_cls = Update
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: Joining) -> None:
        raise AssertionError(f"{type(self).__name__} needs no meeting")

    def start_weight_update(self) -> None:
        self._settle()
        self._missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        self._settle()

    def receive_weights(self, update_info: Update) -> None:
        bucket = update_info.bucket
        model: Any = self.model
        self._missing -= model.load_weights(unpack(self.fetch(bucket), bucket.table))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _refresh_packed_head(self.model)
        self._settle()
        # vLLM silently keeps the old weights of a layer that nothing arrived for. Quantised layers
        # have parameters that are computed, not sent.
        if self.model_config.quantization is None:
            assert not self._missing, f"the update did not bring {sorted(self._missing)}"
        if self.device.type != "cpu":
            # What the copies took is free again, and the key-value cache is about to wake: give it back.
            torch.accelerator.empty_cache()

    def _settle(self) -> None:
        """Wait for the GPU: steps and updates may come from two threads, whose streams do not wait for each other."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def fetch(self, bucket: Bucket) -> Tensor:
        """The bytes of the bucket on this worker's device, not overwritten before the update ends."""
        raise NotImplementedError

    def shutdown(self) -> None:
        pass

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Abstract in vLLM up to 0.26, where the trainer's end belongs to the same class; ours is `transfer`."""
        raise AssertionError("weights are sent by a WeightSender")


class ObjectStoreReceiver(BucketReceiver):
    def fetch(self, bucket: Bucket) -> Tensor:
        # An array in an object store is read-only, of which torch warns; nobody writes to it here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")
            return torch.frombuffer(bucket.data, dtype=torch.uint8)


class IpcReceiver(BucketReceiver):
    """Opens the trainer's staging buffer once and keeps it open (see IpcSender). Not run without a GPU."""

    _opened: tuple[tuple[Any, ...], Tensor] | None = None

    def fetch(self, bucket: Bucket) -> Tensor:
        assert isinstance(bucket.data, dict)
        uuid = gpu_uuid(self.device)
        assert uuid in bucket.data, f"no training rank on GPU {uuid}; they are on {sorted(bucket.data)}"
        rebuild, args = bucket.data[uuid]
        if self._opened is None or self._opened[0] != args:
            # Argument 6 is the device's index, which the two processes may count differently.
            self._opened = (args, rebuild(*args[:6], self.device.index, *args[7:]))
        # The trainer reuses the buffer for its next bucket while layers still wait for their parts.
        return self._opened[1][: bucket.nbytes].clone()

    def shutdown(self) -> None:
        self._opened = None


class BroadcastReceiver(BucketReceiver):
    """Receives the trainer's broadcast. Not run without a GPU."""

    _group: Any = None

    def init_transfer_engine(self, init_info: Joining) -> None:
        first = init_info.rendezvous
        mine = Rendezvous(first.address, first.port, first.rank + self.parallel_config.rank, first.world_size)
        self._group = join_broadcast(mine, self.device.index)

    def fetch(self, bucket: Bucket) -> Tensor:
        assert self._group is not None, "join before the first update"
        flat = torch.empty(bucket.nbytes, dtype=torch.uint8, device=self.device)
        self._group.broadcast(flat, src=0)
        return flat

    def shutdown(self) -> None:
        self._group = None


def _refresh_packed_head(model: nn.Module) -> None:
    """On a CPU the head keeps a packed copy of its weight, which a reload of tied embeddings leaves stale."""
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


BACKENDS = {
    "object_store": ObjectStoreReceiver,
    "ipc": IpcReceiver,
    "broadcast": BroadcastReceiver,
}
PREFIX = "openrlhf_ext_"

for _name, _backend in BACKENDS.items():
    WeightTransferEngineFactory.register_engine(PREFIX + _name, _backend)
