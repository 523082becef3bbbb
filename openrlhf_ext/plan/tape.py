"""Autograd in bytes: what torch would hold while a program runs forward and backward, without a number computed.

A program written with a `Tape` allocates, saves and frees what the same program written with torch does: a `Value` is
a tensor of which only the size is known, an operation says what it gives back, what it saves for backward (PyTorch's
tools/autograd/derivatives.yaml) and what its backward pass takes. Python frees what nobody holds any more in both, so
the most that was live at once, and what it consisted of, can be read off a ledger.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Literal


class Ledger:
    """Live bytes by kind, and for every moment the most there were (`peaks`: total, and the kinds it consisted of)."""

    def __init__(self) -> None:
        self.kind, self.moment = "activations", ""
        self.live: Counter[str] = Counter()
        self.total = self.top = 0
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}

    @contextmanager
    def during(self, moment: str) -> Iterator[None]:
        outer, self.moment = self.moment, moment
        self.top = self.peaks.get(moment, (-1, {}))[0]
        self._compare()
        try:
            yield
        finally:
            self.moment = outer
            self.top = self.peaks.get(outer, (-1, {}))[0]

    @contextmanager
    def kept_as(self, kind: str) -> Iterator[None]:
        """What is allocated meanwhile is of this kind."""
        outer, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = outer

    def add(self, kind: str, nbytes: int) -> None:
        self.live[kind] += nbytes
        self.total += nbytes
        if self.total > self.top:
            self._compare()

    def _compare(self) -> None:
        if self.total > self.top:
            self.top = self.total
            self.peaks[self.moment] = (self.total, dict(self.live))


class Block:
    """Memory of one tensor and its views: live as long as this object."""

    __slots__ = ("kind", "ledger", "nbytes")

    def __init__(self, ledger: Ledger, nbytes: int) -> None:
        self.ledger, self.nbytes, self.kind = ledger, nbytes, ledger.kind
        ledger.add(self.kind, nbytes)

    def __del__(self) -> None:
        self.ledger.live[self.kind] -= self.nbytes
        self.ledger.total -= self.nbytes


class Parameter:
    """A parameter: itself resident and not counted here; its gradient is. `trained`: whether it has one."""

    __slots__ = ("arrived", "grad", "numel", "trained", "waiting", "width")

    def __init__(self, numel: int, width: int, trained: bool) -> None:
        self.numel, self.width, self.trained = numel, width, trained
        self.waiting: Block | None = None
        self.arrived = 0
        self.grad: Block | None = None


class Value:
    """A tensor of `numel` numbers of `width` bytes. `need`: a gradient flows back through it."""

    __slots__ = ("block", "need", "node", "numel", "width")

    def __init__(self, numel: int, width: int, block: Block | None, need: bool = False) -> None:
        self.numel, self.width, self.block, self.need = numel, width, block, need
        self.node: Node | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.width


Gradient = tuple["Node | Parameter | None", Block | None, int]
"""Whose gradient, the memory it is in, and the bytes it is summed to where the operand was broadcast."""


class Node:
    """An operation to go back through. `backward` holds what was saved, and is dropped when it has run."""

    __slots__ = ("backward", "kind", "number")

    def __init__(self, number: int, kind: str, backward: Callable[[Block], Sequence[Gradient]]) -> None:
        self.number, self.kind, self.backward = number, kind, backward


Mode = Literal["record", "hollow", "again", "off"]
"""`hollow`: the first forward of a checkpointed part, which saves nothing; `again`: its recomputation."""


class Tape:
    """`in_place`: gradients that meet are added in place, as torch does (not while a dispatch mode watches it)."""

    def __init__(self, *, in_place: bool = True, on_gradient: Callable[[Parameter, Block], None] | None = None) -> None:
        self.ledger = Ledger()
        self.in_place = in_place
        self.mode: Mode = "record"
        self._on_gradient = on_gradient
        self._nodes = self._saves = 0
        self._stop_after: int | None = None
        self._uses: Counter[Parameter] = Counter()

    # -- values

    def new(self, numel: int, width: int) -> Value:
        return Value(numel, width, self.block(numel * width))

    def block(self, nbytes: int) -> Block:
        muted = self._stop_after is not None and self._saves >= self._stop_after
        return Block(self.ledger, 0 if muted else nbytes)

    def save(self, value: Value) -> Block | None:
        """What autograd keeps of a value, for the closure of a `backward`."""
        if self.mode == "off":
            return None
        self._saves += 1
        return None if self.mode == "hollow" else value.block

    def link(
        self, out: Value, operands: Sequence[Value | Parameter], backward: Callable[[Block], Sequence[Gradient]]
    ) -> Value:
        """Make `out` the result of an operation on these operands; it needs a gradient if one of them does."""
        out.need = self.mode != "off" and any(_needs(operand) for operand in operands)
        if not out.need:
            return out
        if self.mode != "again":
            self._uses.update(o for o in operands if isinstance(o, Parameter) and o.trained)
        if self.mode != "hollow":
            self._nodes += 1
            out.node = Node(self._nodes, self.ledger.kind, backward)
        return out

    # -- backward

    def backward(self, root: Value, grad: Block) -> None:
        assert root.node is not None, "there is nothing to go back through"
        outer, self.mode = self.mode, "off"
        self._run(root.node, grad)
        self.mode = outer

    def _run(self, root: Node, grad: Block) -> None:
        waiting: dict[Node, Block] = {root: grad}
        del grad
        queue = [(-root.number, id(root), root)]
        while queue:
            node = heappop(queue)[2]
            with self.ledger.kept_as(node.kind):
                gradients = list(node.backward(waiting.pop(node)))
                node.backward = _done
                # Broadcast operands first get their own size back, then every gradient goes where it belongs.
                for i, (target, block, size) in enumerate(gradients):
                    if block is not None and block.nbytes > size:
                        gradients[i] = (target, Block(self.ledger, size), size)
                block = None
                gradients.reverse()
                arrivals: list[tuple[Parameter, Block]] = []
                while gradients:
                    target, block, _ = gradients.pop()
                    if block is None or target is None:
                        continue
                    if isinstance(target, Parameter):
                        arrivals.append((target, block))
                    elif target in waiting:
                        waiting[target] = self._sum(waiting.pop(target), block)
                    else:
                        waiting[target] = block
                        heappush(queue, (-target.number, id(target), target))
                    block = None
                while arrivals:
                    self._arrive(*arrivals.pop(0))

    def _sum(self, held: Block, arrived: Block) -> Block:
        if self.in_place and sys.getrefcount(held) <= 3:
            return held
        return Block(self.ledger, held.nbytes)

    def _arrive(self, weight: Parameter, block: Block) -> None:
        """A parameter's gradient is there when all its uses have added to it."""
        weight.arrived += 1
        if weight.waiting is not None:
            held, weight.waiting = weight.waiting, None
            block = self._sum(held, block)
            del held
        if weight.arrived < self._uses[weight]:
            weight.waiting = block
            return
        weight.arrived = 0
        if self._on_gradient is not None:
            self._on_gradient(weight, block)
        elif weight.grad is None:
            weight.grad = block

    def step_done(self) -> None:
        """Forget the uses of a forward pass that has been gone back through."""
        self._uses.clear()

    # -- checkpointing

    def checkpoint(self, program: Callable[[Value], Value], x: Value, *, reentrant: bool) -> Value:
        """Gradient checkpointing: only `x` is kept, and `program` runs again in the backward pass.

        Without re-entrance the recomputation stops where the last saved tensor has been made; with it the second
        run is a graph of its own, complete with its result.
        """
        if self.mode == "off":
            return program(x)
        assert self.mode == "record", "checkpointed parts lie in a row"
        before, self.mode = self._saves, "off" if reentrant else "hollow"
        out = program(x)
        self.mode, saves = "record", self._saves - before
        if reentrant:
            out.need = x.need
        if not out.need:
            return out
        kept, target = Value(x.numel, x.width, x.block, x.need), x.node

        def backward(grad: Block) -> Sequence[Gradient]:
            box = [grad]
            if not reentrant:
                del grad
            return self._replay(program, kept, target, box, None if reentrant else saves)

        self._nodes += 1
        out.node = Node(self._nodes, self.ledger.kind, backward)
        return out

    def _replay(
        self, program: Callable[[Value], Value], kept: Value, target: Node | None, box: list[Block], stop: int | None
    ) -> Sequence[Gradient]:
        caught: list[Block] = []
        self._nodes += 1
        source = Value(kept.numel, kept.width, kept.block, kept.need)
        source.node = Node(self._nodes, self.ledger.kind, lambda grad: caught.append(grad) or ())  # type: ignore[func-returns-value]
        outer_uses, outer_saves = self._uses, self._saves
        if stop is None:
            self.mode, self._uses = "record", Counter()
        else:
            self.mode, self._saves, self._stop_after = "again", 0, stop
        out = program(source)
        self.mode, self._saves, self._stop_after = "off", outer_saves, None
        assert out.node is not None
        self._run(out.node, box.pop())
        self._uses = outer_uses
        return [(target, block, block.nbytes) for block in caught]


def _needs(operand: Value | Parameter) -> bool:
    return operand.trained if isinstance(operand, Parameter) else operand.need


def _done(_: Block) -> Sequence[Gradient]:
    raise AssertionError("a graph is gone back through once")
