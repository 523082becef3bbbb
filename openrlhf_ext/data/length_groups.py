"""Which examples an optimizer step trains on: shuffled, grouped by length where that is asked for, the longest first.

A step's examples depend on the seed, the lengths and the step's number, and on nothing that happened before: a run
that is killed and resumed trains on the same ones. How a step is cut into micro-batches is `batch.partition`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from openrlhf_ext.types import derive_seed


class StepOrder:
    """Every epoch visits every example once, in steps of `batch_size`; the last step of an epoch may be short.

    `lengths` are the tokens of each row of each example: one row for SFT, two for a preference pair.
    `window` is how many steps' worth of examples are sorted by length before they are cut into steps: 1 mixes
    lengths as they come, more saves padding and makes neighbours in a step more alike. The very first step of a
    run is the one with the longest rows, so that memory runs out in the first minute or not at all. Nothing of
    this depends on how a step is cut into micro-batches.
    """

    def __init__(self, lengths: Sequence[tuple[int, ...]], *, batch_size: int, seed: int, window: int = 1) -> None:
        assert lengths and batch_size > 0 and window > 0
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._window = window
        self._epoch = -1
        self._steps: list[list[int]] = []

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self._lengths) / self._batch_size)

    def rows(self, step: int) -> list[int]:
        """The examples of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._steps, self._epoch = self._steps_of(epoch), epoch
        return self._steps[index]

    def _steps_of(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self._lengths)))
        Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
        size = self._batch_size
        if self._window > 1:
            order = self._grouped(order, size * self._window)
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        # A short step stays the last one: a resumed run counts steps by their number.
        whole = [step for step in steps if len(step) == size]
        if self._window > 1:
            Random(derive_seed(self._seed, "steps", epoch)).shuffle(whole)
        if epoch == 0 and whole:
            whole.insert(0, whole.pop(max(range(len(whole)), key=lambda i: (self._longest(whole[i]), -i))))
        return whole + [step for step in steps if len(step) < size]

    def _longest(self, rows: Sequence[int]) -> list[int]:
        """The lengths of a step's rows, the longest first: what steps are compared by."""
        return sorted((length for row in rows for length in self._lengths[row]), reverse=True)

    def _grouped(self, order: Sequence[int], window: int) -> list[int]:
        """Each window's examples with the longest first; equally long ones stay as they were shuffled."""
        grouped: list[int] = []
        for start in range(0, len(order), window):
            grouped += sorted(order[start : start + window], key=lambda row: -max(self._lengths[row]))
        return grouped
