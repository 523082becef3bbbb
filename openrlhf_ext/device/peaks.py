"""The most memory that this process holds in each phase of a run, and what it means where there is not enough."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from openrlhf_ext.device.choose import Device
from openrlhf_ext.device.host_memory import (
    free_host_bytes,
    host_bytes,
    limit_of_process,
    reset_resident_peak,
    resident_bytes,
    shared_bytes,
)
from openrlhf_ext.errors import OutOfMemory, Shortage

T = TypeVar("T")

# CUDA, cuBLAS, cuDNN and NCCL, torch's allocator of a CPU, and C++ all raise RuntimeErrors.
_WORDS = re.compile(r"out of memory|allocate memory|not enough memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes of one process at the most: tensors on its GPU, what the allocator reserved for them, resident on the host.

    Pages that processes share are shared out among them (those of libraries: as they were when it first measured).
    `gpu` and `reserved` are 0 where the process uses no GPU. `sampled`: this kernel resets no peaks, so `host` is
    the size at the phase's end.
    """

    gpu: int
    reserved: int
    host: int
    sampled: bool = False

    def most(self, other: Peak) -> Peak:
        return Peak(
            max(self.gpu, other.gpu),
            max(self.reserved, other.reserved),
            max(self.host, other.host),
            self.sampled or other.sampled,
        )


@dataclass(frozen=True, slots=True)
class Measured(Generic[T]):
    """A process's answer, and its peaks by phase since the answer before."""

    answer: T
    peaks: dict[str, Peak]


class PeakMeter:
    """Measures one process of a role: `with meter("train"): ...`. A measurement resets the process's peaks, so no two
    may overlap; it costs some tens of microseconds.
    """

    def __init__(self, device: Device, role: str) -> None:
        self._device, self._role = device, role
        self._peaks: dict[str, Peak] = {}
        self._sampled = False
        self._shared: int | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Raises OutOfMemory in place of whatever says that the memory is not enough."""
        self._reset()
        with self.guard(phase):
            yield
        peak = self._read()
        self._peaks[phase] = peak.most(self._peaks.get(phase, peak))

    @contextmanager
    def guard(self, phase: str) -> Iterator[None]:
        """The same without a measurement."""
        try:
            yield
        except OutOfMemory:
            raise
        except Exception as error:
            if (reason := lack_of_memory(error)) is None:
                raise
            raise OutOfMemory(self._shortage(phase, reason)) from error

    def lap(self) -> Peak:
        """The peak since the last measurement began, whatever was done in it, or since the last lap."""
        peak = self._read()
        self._reset()
        return peak

    def take(self) -> dict[str, Peak]:
        """The peaks by phase since the last take."""
        peaks, self._peaks = self._peaks, {}
        return peaks

    def _reset(self) -> None:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._sampled = not reset_resident_peak()

    def _read(self) -> Peak:
        if self._shared is None:
            self._shared = shared_bytes()
        resident = max((resident_bytes("VmRSS" if self._sampled else "VmHWM") or 0) - self._shared, 0)
        if not self._on_gpu:
            return Peak(0, 0, resident, self._sampled)
        return Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), resident, self._sampled)

    def _shortage(self, phase: str, reason: str) -> Shortage:
        peak = self._read()
        if self._on_gpu and not _of_the_host(reason):
            free, total = torch.cuda.mem_get_info()
            return Shortage(self._role, phase, reason, peak.gpu, free, total)
        if (limit := limit_of_process()) is not None:
            reason += f"; the process may take {limit / 1e9:.2f} GB (ulimit)"
        return Shortage(self._role, phase, reason, peak.host, free_host_bytes(), host_bytes())

    @property
    def _on_gpu(self) -> bool:
        # To ask a process about its GPU makes a context there, which it may never need.
        return self._device.kind == "cuda" and torch.cuda.is_initialized()


def lack_of_memory(error: BaseException) -> str | None:
    """The first line of an error that says, itself or by its cause, that memory is not enough; else None."""
    at: BaseException | None = error
    while at is not None:
        text = str(at).strip()
        first = text.splitlines()[0][:200] if text else type(at).__name__
        if isinstance(at, MemoryError | torch.OutOfMemoryError):
            return first
        if isinstance(at, OSError) and at.errno == errno.ENOMEM:
            return first
        if isinstance(at, RuntimeError) and (found := _WORDS.search(text)):
            line = next(line for line in text.splitlines() if found.group() in line)
            return re.sub(r"^\[enforce fail[^\]]*\].*?(?=DefaultCPUAllocator)", "", line.strip())[:200]
        at = at.__cause__
    return None


def _of_the_host(reason: str) -> bool:
    return "DefaultCPUAllocator" in reason or reason == "MemoryError"
