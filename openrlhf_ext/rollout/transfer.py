"""How weights travel from the trainer to the engines: in flat buckets, by one of three ways.

A bucket is one run of bytes with a table of what lies where, so that no way of travelling costs
a call per tensor:

- `object_store` (CPU): the bytes themselves, in an array that an object store hands over: without a copy on its own
  node, and sent to every other node once, however many engines read it there;
- `ipc` (trainer and engine on one GPU): a handle of the bytes for each GPU, by the GPU's UUID;
- `broadcast` (trainer and engines on different GPUs, of one node or several): only the table; the bytes come by a
  collective.

The senders live in the training processes and know neither Ray nor DeepSpeed; the other end is
`openrlhf_ext.rollout.receiver`, which runs inside vLLM's worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from openrlhf_ext.device import Device

Transport = Literal["object_store", "ipc", "broadcast"]
NamedTensors = Sequence[tuple[str, Tensor]]

# Every tensor starts at a multiple of this, so that a slice of bytes can be viewed as any dtype.
ALIGNMENT = 16

# A staging buffer's size is a multiple of this: buckets of about one size use one buffer.
STAGING_BYTES = 64 << 20


class Place(NamedTuple):
    """Where a tensor lies in a bucket: `offset` is in bytes, `dtype` the name in the torch module."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Bucket:
    """What an engine is given to load: the table, and the bytes or how to come by them.

    `data` is a uint8 array (`object_store`), handles by GPU UUID (`ipc`) or None (`broadcast`).
    """

    table: tuple[Place, ...]
    nbytes: int
    data: np.ndarray | dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the trainer (rank 0) and the workers of all engines meet for `broadcast`."""

    address: str
    port: int
    rank: int
    world_size: int

    def of_engine(self, index: int, tensor_parallel_size: int) -> Rendezvous:
        """The same meeting, seen by the first worker of engine `index`."""
        return replace(self, rank=1 + index * tensor_parallel_size)


class Handle(Protocol):
    """A call under way in all engines."""

    def wait(self) -> None:
        """Block until every engine is done; raise what any of them raised."""
        ...


CallEngines = Callable[[Bucket], Handle]
AllGather = Callable[[Any], list[Any]]


class WeightSender(Protocol):
    """One training rank's end. All ranks call `send` with the same buckets in the same order."""

    def send(self, tensors: NamedTensors, call_engines: CallEngines) -> None:
        """Give one bucket to all engines; the tensors may be changed or freed on return.

        `call_engines` starts `VllmEngine.load_bucket` everywhere; rank 0 alone calls it.
        """
        ...

    def close(self) -> None: ...


def choose_transport(device: Device, colocated: bool) -> Transport:
    """The way for this device; `colocated` says that every engine shares its GPUs with training ranks."""
    if device.kind == "cpu":
        return "object_store"
    return "ipc" if colocated and device.can("ipc") else "broadcast"


def make_sender(
    transport: Transport,
    *,
    rank: int = 0,
    all_gather: AllGather | None = None,
    rendezvous: Rendezvous | None = None,
) -> WeightSender:
    """The sender of this rank.

    `all_gather` (for `ipc` with several ranks) collects one object from every rank, on every rank.
    `rendezvous` (for `broadcast`, rank 0): the call blocks until all engines joined, so start their
    `VllmEngine.join` first.
    """
    if transport == "object_store":
        return ObjectStoreSender(rank)
    if transport == "ipc":
        return IpcSender(rank, all_gather or (lambda value: [value]))
    if rank:
        return Bystander()
    assert rendezvous is not None, "a broadcast needs a place to meet"
    return BroadcastSender(rendezvous)


def layout(tensors: NamedTensors) -> tuple[tuple[Place, ...], int]:
    """The table of these tensors laid end to end (aligned), and the bytes they take."""
    table, end = [], 0
    for name, tensor in tensors:
        place = Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), end)
        table.append(place)
        end += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(table), end


def pack(tensors: NamedTensors, table: Sequence[Place], flat: Tensor) -> None:
    """Copy the tensors to their places in `flat` (uint8, at least the bucket's size, any device)."""
    for (_, tensor), place in zip(tensors, table, strict=True):
        source = tensor.detach().reshape(-1).view(torch.uint8)
        flat[place.offset : place.offset + place.nbytes].copy_(source, non_blocking=True)


def unpack(flat: Tensor, table: Sequence[Place]) -> list[tuple[str, Tensor]]:
    """The named tensors as views of `flat`."""
    return [(p.name, flat[p.offset : p.offset + p.nbytes].view(getattr(torch, p.dtype)).view(p.shape)) for p in table]


def packed(tensors: NamedTensors) -> Bucket:
    """A bucket of bytes in host memory."""
    table, nbytes = layout(tensors)
    flat = torch.empty(nbytes, dtype=torch.uint8)
    pack(tensors, table, flat)
    if any(tensor.device.type != "cpu" for _, tensor in tensors):
        torch.accelerator.synchronize()
    return Bucket(table, nbytes, flat.numpy())


class Bystander:
    """A rank that has nothing to send: its share of the work was to gather the full tensors."""

    def send(self, tensors: NamedTensors, call_engines: CallEngines) -> None:
        pass

    def close(self) -> None:
        pass


class ObjectStoreSender:
    """Rank 0 sends the bytes. A fresh array per bucket: engines may keep views of it until the update ends."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def send(self, tensors: NamedTensors, call_engines: CallEngines) -> None:
        if not self._rank:
            call_engines(packed(tensors)).wait()

    def close(self) -> None:
        pass


class IpcSender:
    """Every rank copies the bucket to its own GPU's staging buffer; rank 0 sends the handles of all.

    Any of the ranks may be the one that shares a GPU with an engine's worker, and only its handle
    can be opened there. The buffer lives as long as the sender and is exported once per size: torch
    counts one export against one release by the receiver, so exporting per bucket would leak on
    GPUs without an engine. Not run without a GPU.
    """

    def __init__(self, rank: int, all_gather: AllGather) -> None:
        self._rank = rank
        self._all_gather = all_gather
        self._staging: Tensor | None = None
        self._handle: dict[str, Any] = {}

    def send(self, tensors: NamedTensors, call_engines: CallEngines) -> None:
        table, nbytes = layout(tensors)
        if self._staging is None or self._staging.numel() < nbytes:
            self._export(nbytes, tensors[0][1].device)
        assert self._staging is not None
        pack(tensors, table, self._staging)
        torch.accelerator.synchronize()
        handles = {uuid: handle for part in self._all_gather(self._handle) for uuid, handle in part.items()}
        if self._rank == 0:
            call_engines(Bucket(table, nbytes, handles)).wait()
        # No rank may overwrite its buffer before rank 0 knows that every engine has read it.
        self._all_gather(None)

    def _export(self, nbytes: int, device: torch.device) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        # The buffer stays for good. Cut from a larger cached block, it would keep all of it on the GPU
        # while this process sleeps; without cached blocks it gets one of its own.
        self._staging = None
        torch.accelerator.empty_cache()
        size = -(-nbytes // STAGING_BYTES) * STAGING_BYTES
        self._staging = torch.empty(size, dtype=torch.uint8, device=device)
        self._handle = {gpu_uuid(device): reduce_tensor(self._staging)}

    def close(self) -> None:
        self._staging, self._handle = None, {}


class BroadcastSender:
    """Rank 0 broadcasts the bytes while the engines, told of the table, receive them. Not run without a GPU."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._group = join_broadcast(rendezvous, torch.accelerator.current_device_index())

    def send(self, tensors: NamedTensors, call_engines: CallEngines) -> None:
        table, nbytes = layout(tensors)
        flat = torch.empty(nbytes, dtype=torch.uint8, device=tensors[0][1].device)
        pack(tensors, table, flat)
        # The engines enter the collective inside this call, hence it must not be waited for first.
        loading = call_engines(Bucket(table, nbytes))
        self._group.broadcast(flat, src=0)
        torch.accelerator.synchronize()
        loading.wait()

    def close(self) -> None:
        self._group = None


def gpu_uuid(device: torch.device) -> str:
    """The name of a GPU that all processes agree on, whatever indices they see."""
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    return str(torch.get_device_module(device).get_device_properties(index).uuid)


def join_broadcast(rendezvous: Rendezvous, device_index: int) -> Any:
    """A communicator of the trainer's rank 0 and all workers, apart from torch's process groups; blocks."""
    from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

    group = stateless_init_process_group(
        rendezvous.address, rendezvous.port, rendezvous.rank, rendezvous.world_size, device_index
    )
    # Without its library vLLM's communicator turns every call into nothing, and the weights would be noise.
    assert not group.disabled, "vLLM found no library for collectives between GPUs"
    return group
