"""Buckets: what is packed is what is unpacked, and who sends what."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_ext.device import Device
from openrlhf_ext.rollout.transfer import (
    ALIGNMENT,
    Bucket,
    Rendezvous,
    choose_transport,
    layout,
    make_sender,
    pack,
    unpack,
)

CPU = Device("cpu", 0, frozenset({"bf16"}))
GPU = Device("cuda", 2, frozenset({"sleep", "ipc"}))


@st.composite
def named_tensors(draw: st.DrawFn) -> list[tuple[str, Tensor]]:
    found = []
    for index in range(draw(st.integers(1, 6))):
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64]))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        tensor = (torch.randn(shape) * 100).to(dtype)
        if draw(st.booleans()) and tensor.ndim == 2:
            tensor = tensor.t()  # not contiguous
        found.append((f"layer.{index}.weight", tensor))
    return found


class Engines:
    """What was sent, and whether the call was waited for."""

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.waited = 0

    def __call__(self, bucket: Bucket) -> Engines:
        self.buckets.append(bucket)
        return self

    def wait(self) -> None:
        self.waited += 1


@given(named_tensors())
def test_what_is_packed_is_unpacked(tensors: list[tuple[str, Tensor]]):
    table, nbytes = layout(tensors)
    flat = torch.full((nbytes + 3,), 255, dtype=torch.uint8)  # a staging buffer may be larger than the bucket
    pack(tensors, table, flat)
    again = unpack(flat, table)
    assert [name for name, _ in again] == [name for name, _ in tensors]
    for (_, got), (_, sent) in zip(again, tensors, strict=True):
        assert got.dtype == sent.dtype
        assert got.shape == sent.shape
        assert torch.equal(got, sent)


@given(named_tensors())
def test_places_are_aligned_and_do_not_overlap(tensors: list[tuple[str, Tensor]]):
    table, nbytes = layout(tensors)
    end = 0
    for place, (_, tensor) in zip(table, tensors, strict=True):
        assert place.offset >= end
        assert place.offset % ALIGNMENT == 0
        assert place.nbytes == tensor.numel() * tensor.element_size()
        end = place.offset + place.nbytes
    assert end <= nbytes < end + ALIGNMENT


@given(named_tensors())
def test_the_object_store_gets_one_array_that_outlives_the_tensors(tensors: list[tuple[str, Tensor]]):
    engines = Engines()
    expected = [tensor.clone() for _, tensor in tensors]
    make_sender("object_store").send(tensors, engines)
    for _, tensor in tensors:
        tensor.zero_()
    (bucket,) = engines.buckets
    assert engines.waited == 1
    assert isinstance(bucket.data, np.ndarray)
    assert bucket.data.nbytes == bucket.nbytes
    sent = pickle.loads(pickle.dumps(bucket))
    got = unpack(torch.frombuffer(bytearray(sent.data), dtype=torch.uint8), sent.table) if bucket.nbytes else []
    assert all(torch.equal(a, b) for (_, a), b in zip(got, expected, strict=bool(bucket.nbytes)))


@pytest.mark.parametrize("transport", ["object_store", "broadcast"])
def test_only_rank_0_calls_the_engines(transport):
    engines = Engines()
    sender = make_sender(transport, rank=1)
    sender.send([("w", torch.ones(3))], engines)
    sender.close()
    assert not engines.buckets


def test_each_place_has_its_way():
    assert choose_transport(CPU, colocated=True) == choose_transport(CPU, colocated=False) == "object_store"
    assert choose_transport(GPU, colocated=True) == "ipc"
    assert choose_transport(GPU, colocated=False) == "broadcast"
    without_handles = dataclasses.replace(GPU, capabilities=frozenset({"sleep"}))
    assert choose_transport(without_handles, colocated=True) == "broadcast"


def test_every_worker_of_every_engine_has_its_own_rank():
    trainer = Rendezvous("127.0.0.1", 4000, rank=0, world_size=1 + 3 * 2)
    ranks = [
        trainer.of_engine(engine, tensor_parallel_size=2).rank + worker for engine in range(3) for worker in range(2)
    ]
    assert [trainer.rank, *ranks] == list(range(trainer.world_size))
