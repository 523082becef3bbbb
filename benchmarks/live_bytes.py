"""Bytes of live tensors, op by op: how much there is, when there was most, and what it consisted of.

A `TorchDispatchMode` sees every tensor that an operation of torch gives back, in forward, backward and optimizer
alike. Tensors are counted by their storages: views are free, and what autograd saves counts as long as autograd holds
it. A weak reference to a storage tells when it is gone. What a kernel takes and gives back within one operation is
not seen (on a CPU: attention's tiles, a few hundred KB).
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BEFORE = "before"
"""The moment of what existed already."""


@dataclass(slots=True)
class Made:
    """One storage. `born` and `died` count operations; `died` is None while it lives. `place`: the line of code."""

    nbytes: int
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    moment: str
    place: str
    born: int
    died: int | None = None

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"{str(self.dtype).removeprefix('torch.')}({shape}) by {self.op} at {self.place}, {self.moment}"


class LiveBytes(TorchDispatchMode):
    """While it is entered, `live` is the number of bytes in live tensors and `peak` the most there have been.

    `adopt` is given the tensors that are there before (a view of one that is not would count as new); `device` is the
    type of device whose tensors count. `trace`: keep what the peak consisted of (slower).
    """

    def __init__(self, device: str = "cpu", *, trace: bool = False) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peak_moment = self.moment = BEFORE
        self.peaks: dict[str, int] = {}
        self._device, self._trace = device, trace
        self._known: dict[int, weakref.ref[Any]] = {}
        self._made: list[Made] = []
        self._clock = self._peak_clock = 0

    def adopt(self, tensors: Iterator[Tensor]) -> None:
        """Count these tensors, and their gradients, as there from now on."""
        for tensor in tensors:
            self._count(tensor, "given")
            if tensor.is_leaf and tensor.grad is not None:
                self._count(tensor.grad, "given")

    @contextmanager
    def during(self, moment: str) -> Iterator[None]:
        """A name for what happens meanwhile."""
        outer, self.moment = self.moment, moment
        self._compare()
        try:
            yield
        finally:
            self.moment = outer

    def at_peak(self) -> list[Made]:
        """The storages that made up the peak, largest first; the mode was made with `trace`."""
        assert self._trace, "nothing was kept"
        clock = self._peak_clock
        alive = [made for made in self._made if made.born <= clock and (made.died is None or made.died > clock)]
        return sorted(alive, key=lambda made: -made.nbytes)

    def table_at_peak(self) -> list[tuple[int, int, str]]:
        """(bytes, number, description) of equal storages at the peak, largest first."""
        sums: Counter[str] = Counter()
        numbers: Counter[str] = Counter()
        for made in self.at_peak():
            sums[str(made)] += made.nbytes
            numbers[str(made)] += 1
        return [(size, numbers[name], name) for name, size in sums.most_common()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf, str(func))
        return result

    def _count(self, tensor: Tensor, op: str) -> None:
        if tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._clock += 1
        nbytes = storage.nbytes()
        made = Made(nbytes, op, tuple(tensor.shape), tensor.dtype, self.moment, "", self._clock)
        if self._trace:
            made.place = _place()
            self._made.append(made)

        def gone(_: Any) -> None:
            del self._known[key]
            self.live -= nbytes
            self._clock += 1
            made.died = self._clock

        self._known[key] = weakref.ref(storage, gone)
        self.live += nbytes
        self._compare()

    def _compare(self) -> None:
        self.peaks[self.moment] = max(self.peaks.get(self.moment, 0), self.live)
        if self.live > self.peak:
            self.peak, self.peak_moment, self._peak_clock = self.live, self.moment, self._clock


def all_tensors() -> Iterator[Tensor]:
    """Every tensor that Python knows, garbage apart."""
    gc.collect()
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # isinstance would ask proxies for their class, and wake them
            yield thing


def _place() -> str:
    """The innermost line of code outside this file and torch."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and name != __file__:
            return f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "torch"
