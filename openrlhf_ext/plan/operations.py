"""The operations that our models are made of, in bytes: what each gives back, saves and takes on its way back.

As PyTorch 2.13 does them (derivatives.yaml, FunctionsManual.cpp). n: numbers of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.plan.tape import Block, Gradient, Parameter, Tape, Value


class Operations(Tape):
    def view(self, x: Value) -> Value:
        """The same memory in another shape."""
        out = Value(x.numel, x.width, x.block)
        node = x.node
        return self.link(out, [x], lambda grad: [(node, grad, grad.nbytes)])

    def cast(self, x: Value, width: int) -> Value:
        """Another precision: the tensor itself where it has it already."""
        if x.width == width:
            return x
        out = self.new(x.numel, width)
        node, size = x.node, x.nbytes
        return self.link(out, [x], lambda grad: [(node, self.block(size), size)])

    def linear(self, x: Value, weight: Parameter, outputs: int, *, keeps_input: bool = False) -> Value:
        """x W^T. Saves x for the gradient of W, and W for that of x."""
        inputs = weight.numel // outputs
        saved = self.save(x) if weight.trained or (keeps_input and x.need) else None
        if x.need:
            self.save(None)
        out = self.new(x.numel // inputs * outputs, x.width)
        node, need, size, weight_size = x.node, x.need, x.nbytes, weight.numel * weight.width

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved
            own = self.gradient_of(weight) if weight.trained else None
            back = self.block(size) if need else None
            saved = None
            return [(node, back, size), (weight, own, weight_size)]

        return self.link(out, [x, weight], backward)

    def dequantised_linear(self, x: Value, weight: Parameter, outputs: int, *, forward: bool) -> Value:
        """x W^T with W in 4 or 8 bits: the whole W exists while the gradient of x is taken (bitsandbytes' MatMul4Bit).

        With `forward` it does in the forward pass too: of 8 bits always (`models.eight_bits`), of 4 on a GPU where
        there are many rows (backends/cuda/ops.py, `_dequant_linear_fallback`).
        """
        inputs = weight.numel // outputs
        unpacked = self.block(weight.numel * x.width) if forward else None
        out = self.new(x.numel // inputs * outputs, x.width)
        del unpacked
        node, size, whole = x.node, x.nbytes, weight.numel * x.width

        def backward(grad: Block) -> Sequence[Gradient]:
            dequantised = self.block(whole)
            back = self.block(size)
            del dequantised
            return [(node, back, size)]

        return self.link(out, [x], backward)

    def mul(self, x: Value, y: Value) -> Value:
        """x * y, y at most as large as x. Each is saved where the other needs a gradient."""
        saved_y = self.save(y) if x.need else None
        saved_x = self.save(x) if y.need else None
        out = self.new(x.numel, max(x.width, y.width))
        ends = ((x.node, x.need, x.nbytes), (y.node, y.need, y.nbytes))

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved_x, saved_y
            found = [(node, self.block(grad.nbytes) if need else None, size) for node, need, size in ends]
            saved_x = saved_y = None
            return found

        return self.link(out, [x, y], backward)

    def scale_by_weight(self, x: Value, weight: Parameter, *, width: int) -> Value:
        """weight * x, one weight for each of the last dimension (of a norm)."""
        saved = self.save(x) if weight.trained else None
        if x.need:
            self.save(None)
        out = self.new(x.numel, width)
        node, need, size, weight_size = x.node, x.need, x.nbytes, weight.numel * weight.width

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved
            own = self.block(grad.nbytes) if weight.trained else None
            back = self.block(grad.nbytes) if need else None
            saved = None
            return [(node, back, size), (weight, own, weight_size)]

        return self.link(out, [x, weight], backward)

    def times(self, x: Value) -> Value:
        """x * number or x / number: a new tensor, both ways."""
        out = self.new(x.numel, x.width)
        node, size = x.node, x.nbytes
        return self.link(out, [x], lambda grad: [(node, self.block(size), size)])

    def add(self, x: Value, y: Value) -> Value:
        """x + y. The gradient of both is the gradient itself."""
        out = self.new(x.numel, max(x.width, y.width))
        ends = [(v.node if v.need else None, v.nbytes) for v in (x, y)]
        return self.link(out, [x, y], lambda grad: [(node, grad, size) for node, size in ends])

    def matmul(self, x: Value, y: Value, numel: int) -> Value:
        """x y, batch by batch: both are saved."""
        saved_x, saved_y = self.save(x) if y.need else None, self.save(y) if x.need else None
        out = self.new(numel, x.width)
        ends = ((x.node, x.need, x.nbytes), (y.node, y.need, y.nbytes))

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved_x, saved_y
            found = [(node, self.block(size) if need else None, size) for node, need, size in ends]
            saved_x = saved_y = None
            return found

        return self.link(out, [x, y], backward)

    def softmax(self, x: Value) -> Value:
        """In float32, whatever the precision of x: saves its result."""
        single = self.cast(x, 4)
        out = self.new(x.numel, 4)
        saved = self.save(out)
        node, size = single.node, single.nbytes
        del single

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved
            back = self.block(size)
            saved = None
            return [(node, back, size)]

        operand = Value(x.numel, 4, None, x.need)
        return self.link(out, [operand], backward)

    def activation(self, x: Value) -> Value:
        """silu or gelu: saves its input."""
        return self._mapped(x, self.new(x.numel, x.width), kept=x)

    def tanh(self, x: Value) -> Value:
        """Saves its result."""
        out = self.new(x.numel, x.width)
        return self._mapped(x, out, kept=out)

    def _mapped(self, x: Value, out: Value, *, kept: Value) -> Value:
        """Number by number: the gradient is as large as x, and what was kept goes when it is there."""
        saved = self.save(kept)
        node, size = x.node, x.nbytes

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved
            back = self.block(size)
            saved = None
            return [(node, back, size)]

        return self.link(out, [x], backward)

    def inverse_root_mean_square(self, x: Value, rows: int) -> Value:
        """rsqrt(mean(x^2) + eps) of float32 rows: saves x, and a number a row."""
        square = self._square(x)
        out = self.new(rows, x.width)
        saved = self.save(out)
        node, size = square.node, x.nbytes

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved
            saved = None
            return [(node, self.block(size), size)]  # of the mean: its gradient in every place

        return self.link(out, [square], backward)

    def _square(self, x: Value) -> Value:
        saved = self.save(x)
        out = self.new(x.numel, x.width)
        node, size = x.node, x.nbytes

        def backward(grad: Block) -> Sequence[Gradient]:
            nonlocal saved
            power = self.block(size)
            doubled = self.block(size)
            back = self.block(size)
            del power, doubled
            saved = None
            return [(node, back, size)]

        return self.link(out, [x], backward)

    def rotated(self, x: Value, tables: Value) -> Value:
        """Rotary embedding x cos + rotate_half(x) sin: only the tables are saved, which all layers share."""
        cosine = self.mul(x, tables)
        rotated = self.mul(self._half_turned(x), tables)
        return self.add(cosine, rotated)

    def _half_turned(self, x: Value) -> Value:
        """cat(-x2, x1) of the halves x1, x2 of the last dimension."""
        half = self.block(x.nbytes // 2)
        out = self.new(x.numel, x.width)
        del half
        node, size = x.node, x.nbytes

        def backward(grad: Block) -> Sequence[Gradient]:
            negative = self.block(size // 2)
            second = self.block(size)  # each half's gradient is spread over zeros of the whole
            del negative
            return [(node, second, size), (node, self.block(size), size)]

        return self.link(out, [x], backward)

    def dropped(self, x: Value, mask_width: int) -> Value:
        """Dropout: saves a mask (of bytes on a GPU, of the numbers' own precision on a CPU)."""
        mask = self.new(x.numel, mask_width)
        return self._mapped(x, self.new(x.numel, x.width), kept=mask)

    def copied(self, x: Value) -> Value:
        out = self.new(x.numel, x.width)
        node = x.node
        return self.link(out, [x], lambda grad: [(node, grad, grad.nbytes)])

    def repeated(self, x: Value, times: int, *, copied: bool) -> Value:
        """Each of the heads so many times (`repeat_kv`), as a copy or a view; the gradient is summed again."""
        out = self.new(x.numel * times, x.width) if copied else Value(x.numel * times, x.width, x.block)
        node, size = x.node, x.nbytes
        return self.link(out, [x], lambda grad: [(node, self.block(size), size)])

    def chosen(self, x: Value, numel: int) -> Value:
        """Some rows by index: the gradient is scattered into zeros (twice, where that may not be done in place)."""
        out = self.new(numel, x.width)
        node, size = x.node, x.nbytes

        def backward(grad: Block) -> Sequence[Gradient]:
            zeros = self.block(size)
            return [(node, zeros if self.in_place else self.block(size), size)]

        return self.link(out, [x], backward)

    def relaid(self, x: Value) -> Value:
        """A view whose gradient must be copied, for it comes in another order of dimensions."""
        out = Value(x.numel, x.width, x.block)
        node, size = x.node, x.nbytes
        return self.link(out, [x], lambda grad: [(node, self.block(size), size)])

    def embedding(self, weight: Parameter, numel: int) -> Value:
        """Rows of the table by token; its gradient is a whole table."""
        out = self.new(numel, weight.width)
        size = weight.numel * weight.width
        return self.link(out, [weight], lambda grad: [(weight, self.gradient_of(weight), size)])

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """Parts of `sizes` numbers, views; the gradient is put together when all parts have theirs."""
        node, total, found = x.node, x.nbytes, list[Block]()

        def backward(grad: Block) -> Sequence[Gradient]:
            found.append(grad)
            if len(found) < len(sizes):
                return ()
            whole = self.block(total)
            found.clear()
            return [(node, whole, total)]

        return [self.link(Value(size, x.width, x.block), [x], backward) for size in sizes]

    def attended(self, q: Value, k: Value, v: Value, mask: Value | None, rows: int) -> Value:
        """softmax(q k^T) v by a kernel that never holds the scores: saves q, k, v, its result and a float32 a row."""
        saved = [self.save(x) for x in (q, k, v)]
        if mask is not None:
            saved.append(self.save(mask))
        out = self.new(q.numel, q.width)
        sums = self.new(rows, 4)
        saved += [self.save(out), self.save(sums)]
        ends = [(x.node, x.need, x.nbytes) for x in (q, k, v)]

        def backward(grad: Block) -> Sequence[Gradient]:
            found = [(node, self.block(size), size) for node, _, size in ends]
            saved.clear()
            return found

        return self.link(out, [q, k, v], backward)
