"""Gradients on their way: where DeepSpeed 0.19.6 puts them while a backward pass runs, and what `step` copies.

Stages 1 and 2: runtime/zero/stage_1_and_2.py (`setup_buckets`, `reduce_independent_p_g_buckets_and_remove_grads`,
`copy_grads_in_partition`, `step`); stage 3: stage3.py (`__reduce_and_partition_ipg_grads`, `step`); stage 0:
engine.py (`allreduce_bucket`).
"""

from __future__ import annotations

from collections.abc import Iterable

from openrlhf_ext.plan import states
from openrlhf_ext.plan.tape import Block, Ledger, Parameter
from openrlhf_ext.plan.types import BYTES, ModelRun

FLAT = 500_000_000
"""Numbers that stage 0 reduces at a time."""
SUB_GROUP = 1_000_000_000
"""Numbers that stage 3 takes an optimizer step for at a time."""
NORM_BYTES = 8
"""DeepSpeed takes the norms of gradients in float64 (`get_norm_dtype`)."""


def step_bytes(run: ModelRun, numel: int, largest: int) -> int:
    """What an optimizer step takes at the most, on so many trained numbers, the largest tensor with so many."""
    width, part = BYTES[run.dtype], -(-numel // run.ranks)
    if run.zero_stage == 0:
        return min(numel, FLAT) * width
    norm = NORM_BYTES * (largest if run.zero_stage < 3 else -(-largest // run.ranks))
    taken = min(part, SUB_GROUP) if run.zero_stage == 3 else part
    return max(norm, taken * (width + (4 if width != 4 else 0)))


class Gradients:
    """The gradients of a rank. `arrive` is told of each that is complete, `step` is the optimizer's.

    `accumulated`: there are gradients of earlier micro-batches, to which those of this one are added.
    """

    def __init__(self, run: ModelRun, ledger: Ledger, parameters: Iterable[Parameter], *, accumulated: bool) -> None:
        self.run, self.ledger, self.width = run, ledger, BYTES[run.dtype]
        self.trained = [parameter for parameter in parameters if parameter.trained]
        self.numel = sum(parameter.numel for parameter in self.trained)
        self.part = -(-self.numel // run.ranks)
        self.capacity = states.BUCKET
        self.inside, self.tensors = 0, 0
        self.bucket: list[Block] = []
        self.large: Block | None = None
        self.partition: Block | None = None
        with ledger.kept_as("gradients"):
            if run.zero_stage in (2, 3):
                self.sums = Block(ledger, self.part * self.width) if accumulated or run.zero_stage == 3 else None
            elif accumulated:
                for parameter in self.trained:
                    parameter.grad = Block(ledger, parameter.numel * self.width)
        if self.trained and (run.zero_stage == 3 or (run.zero_stage == 1 and accumulated)):
            self._open()

    def arrive(self, parameter: Parameter, block: Block) -> None:
        if self.run.zero_stage == 0:
            self._keep(parameter, block)
            return
        self._open()
        if self.run.zero_stage == 1:
            self._keep(parameter, block)
        else:
            self._put(parameter.numel, block)

    def end_of_backward(self) -> None:
        """What is left in the bucket is reduced, and added to what earlier micro-batches gave."""
        if self.run.zero_stage in (2, 3):
            self._flush()
        if self.run.zero_stage == 2:
            if self.sums is None:
                self.sums = self.partition
            self.partition = None
            self.bucket.clear()

    def step(self) -> None:
        if self.run.adam_offload or not self.trained:
            return
        if self.run.zero_stage == 1:
            self._reduce_all()
        largest = max(parameter.numel for parameter in self.trained)
        with self.ledger.kept_as("optimizer step"):
            Block(self.ledger, step_bytes(self.run, self.numel, largest))

    def _keep(self, parameter: Parameter, block: Block) -> None:
        """`.grad`: the first gradient itself, and what later ones are added to."""
        if parameter.grad is None:
            parameter.grad = block
            with self.ledger.kept_as("gradients"):
                parameter.grad = Block(self.ledger, 0) if block.nbytes == 0 else block

    def _open(self) -> None:
        with self.ledger.kept_as("gradient bucket"):
            while len(self.bucket) < (2 if self.run.overlap_comm and self.run.zero_stage < 3 else 1):
                self.bucket.append(Block(self.ledger, self.capacity * self.width))

    def _put(self, numel: int, block: Block | None) -> None:
        """Into the bucket, or beside it where it is larger; a full bucket is reduced first."""
        if self.inside + numel > self.capacity:
            self._flush()
        if numel > self.capacity:
            self.large = block
        self.inside += numel
        self.tensors += 1

    def _flush(self) -> None:
        if not self.tensors:
            return
        if self.run.zero_stage == 3:
            if self.tensors > 1:  # one alone is reduced where it is
                with self.ledger.kept_as("gradients"):
                    Block(self.ledger, self.inside * self.width)
        elif self.partition is None and not self.run.adam_offload:
            with self.ledger.kept_as("gradients"):
                self.partition = Block(self.ledger, self.part * self.width)
        self.large, self.inside, self.tensors = None, 0, 0

    def _reduce_all(self) -> None:
        """Stage 1, in `step`: every gradient goes through the bucket into this rank's part."""
        for parameter in self.trained:
            block, parameter.grad = parameter.grad, None
            self._put(parameter.numel, block)
            del block
        self._flush()
        self.bucket.clear()
