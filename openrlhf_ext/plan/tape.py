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
    """Live bytes by kind. `peaks` has, for every moment, those at which most was live.

    A moment is a direction (forward, backward, step) and a place in the program.
    """

    def __init__(self) -> None:
        self.kind, self.direction, self.place = "activations", "forward", ""
        self.live: Counter[str] = Counter()
        self.total = self._top = 0
        self._tops: dict[tuple[str, str], int] = {}
        self.peaks: dict[tuple[str, str], dict[str, int]] = {}

    def at(self, place: str, direction: str | None = None) -> None:
        """What follows happens there."""
        self._tops[self.direction, self.place] = self._top
        self.place, self.direction = place, direction or self.direction
        self._top = self._tops.get((self.direction, place), -1)
        self._compare()

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
        self._compare()

    def remove(self, kind: str, nbytes: int) -> None:
        self.live[kind] -= nbytes
        self.total -= nbytes

    def _compare(self) -> None:
        if self.total > self._top:
            self._top = self.total
            self.peaks[self.direction, self.place] = dict(self.live)


class Block:
    """Memory of one tensor and its views: live as long as this object."""

    __slots__ = ("kind", "ledger", "nbytes")

    def __init__(self, ledger: Ledger, nbytes: int, kind: str | None = None) -> None:
        self.ledger, self.nbytes, self.kind = ledger, nbytes, kind or ledger.kind
        ledger.add(self.kind, nbytes)

    def __del__(self) -> None:
        self.ledger.remove(self.kind, self.nbytes)


class Parameter:
    """A weight: itself resident and not counted here; its gradient is. `trained`: whether it has one."""

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
Backward = Callable[[Block], Sequence[Gradient]]


class Node:
    """An operation to go back through. `backward` holds what was saved, and is dropped when it has run."""

    __slots__ = ("backward", "kind", "number", "place")

    def __init__(self, number: int, ledger: Ledger, backward: Backward) -> None:
        self.number, self.kind, self.place, self.backward = number, ledger.kind, ledger.place, backward


Mode = Literal["record", "hollow", "again", "off"]
"""`hollow`: the first forward of a checkpointed part, which saves nothing; `again`: its recomputation."""


class Tape:
    """`in_place`: gradients that meet are added in place, as torch does (not while a dispatch mode watches it).

    `on_gradient` is given the gradient of each parameter when it is complete.
    """

    def __init__(self, *, in_place: bool = True) -> None:
        self.ledger = Ledger()
        self.in_place = in_place
        self.mode: Mode = "off"
        self.on_gradient: Callable[[Parameter, Block], None] = lambda parameter, block: None
        self._nodes = self._saves = 0
        self._stop_after: int | None = None
        self._uses: Counter[Parameter] = Counter()

    # -- values

    def new(self, numel: int, width: int) -> Value:
        return Value(numel, width, self.block(numel * width))

    def block(self, nbytes: int) -> Block:
        stopped = self._stop_after is not None and self._saves >= self._stop_after
        return Block(self.ledger, 0 if stopped else nbytes)

    def gradient_of(self, parameter: Parameter) -> Block:
        return Block(self.ledger, parameter.numel * parameter.width, "gradients")

    def save(self, value: Value | None) -> Block | None:
        """What autograd keeps of a value, for the closure of a `backward` (None: of a parameter, which is there)."""
        if self.mode == "off":
            return None
        self._saves += 1
        return None if self.mode == "hollow" or value is None else value.block

    def link(self, out: Value, operands: Sequence[Value | Parameter], backward: Backward) -> Value:
        """Make `out` the result of an operation on these operands; it needs a gradient if one of them does."""
        out.need = self.mode != "off" and any(_needs(operand) for operand in operands)
        if not out.need:
            return out
        if self.mode != "again":
            self._uses.update(o for o in operands if isinstance(o, Parameter) and o.trained)
        if self.mode != "hollow":
            out.node = self._node(backward)
        return out

    def _node(self, backward: Backward) -> Node:
        self._nodes += 1
        return Node(self._nodes, self.ledger, backward)

    # -- backward

    def backward(self, root: Value) -> None:
        assert root.node is not None, "there is nothing to go back through"
        outer, self.mode = self.mode, "off"
        self.ledger.at(root.node.place, "backward")
        self._run(root.node, self.block(0))
        self.ledger.at(self.ledger.place, "forward")
        self.mode = outer
        self._uses.clear()

    def _run(self, root: Node, grad: Block) -> None:
        """As torch's engine: the latest operation first, each when all gradients of its result have met."""
        waiting: dict[Node, Block] = {root: grad}
        del grad
        queue = [(-root.number, root)]
        while queue:
            node = heappop(queue)[1]
            if node.place != self.ledger.place:
                self.ledger.at(node.place)
            with self.ledger.kept_as(node.kind):
                gradients = list(node.backward(waiting.pop(node)))
                node.backward = _done
                for fresh in self._hand_out(gradients, waiting):
                    heappush(queue, (-fresh.number, fresh))

    def _hand_out(self, gradients: list[Gradient], waiting: dict[Node, Block]) -> Iterator[Node]:
        """Broadcast operands get their own size back, then every gradient goes to its operation or parameter."""
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
                held = waiting.pop(target)
                waiting[target] = self._sum(held, block)
                del held
            else:
                waiting[target] = block
                yield target
            block = None
        while arrivals:
            self._arrive(arrivals)

    def _sum(self, held: Block, arrived: Block) -> Block:
        if self.in_place and sys.getrefcount(held) <= _ALONE:
            return held
        return Block(self.ledger, held.nbytes, held.kind)

    def _arrive(self, arrivals: list[tuple[Parameter, Block]]) -> None:
        """The first of them. A parameter's gradient is there when all its uses have added to it."""
        parameter, block = arrivals.pop(0)
        parameter.arrived += 1
        if parameter.waiting is not None:
            held, parameter.waiting = parameter.waiting, None
            block = self._sum(held, block)
            del held
        if parameter.arrived < self._uses[parameter]:
            parameter.waiting = block
            return
        parameter.arrived = 0
        self.on_gradient(parameter, block)

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
                del grad  # the re-entrant form's own arguments hold it to the end
            return self._replay(program, kept, target, box, None if reentrant else saves)

        out.node = self._node(backward)
        return out

    def _replay(
        self, program: Callable[[Value], Value], kept: Value, target: Node | None, box: list[Block], stop: int | None
    ) -> Sequence[Gradient]:
        caught: list[Block] = []

        def catch(grad: Block) -> Sequence[Gradient]:
            caught.append(grad)
            return ()

        source = Value(kept.numel, kept.width, kept.block, kept.need)
        source.node = self._node(catch)
        uses, saves = self._uses, self._saves
        if stop is None:
            self.mode, self._uses = "record", Counter()
        else:
            self.mode, self._saves, self._stop_after = "again", 0, stop
        out = program(source)
        self.mode, self._saves, self._stop_after = "off", saves, None
        assert out.node is not None
        self._run(out.node, box.pop())
        self._uses = uses
        return [(target, block, block.nbytes) for block in caught]


_ALONE = 3
"""References to a block in `_sum` if nobody else holds it: the caller's, its own, and getrefcount's."""


def _needs(operand: Value | Parameter) -> bool:
    return operand.trained if isinstance(operand, Parameter) else operand.need


def _done(_: Block) -> Sequence[Gradient]:
    raise AssertionError("a graph is gone back through once")
