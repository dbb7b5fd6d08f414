"""Attention on maps as ONNX nodes: in rectangles, between channels, and to all pixels. Its values
are tokens (B, L, C) row by row; places and masks are computed in the graph, once for all operations
of the same windows."""

from __future__ import annotations

from onnx import TensorProto

from quantsr.deploy.engines.onnx_sizes import Sizes
from quantsr.deploy.folded import (
    LEAST_LENGTH,
    MASKED,
    ChannelAttention,
    GlobalAttention,
    RectangleAttention,
    Step,
)


def _where(op: RectangleAttention) -> tuple[object, ...]:
    """What indices depend on."""
    return op.window, op.shift, op.multiple, op.growth


class MapAttention(Sizes):
    """The operations, and the indices that they read."""

    def rectangle_attention(self, step: Step, q: str, k: str, v: str) -> str:
        op = step.op
        assert isinstance(op, RectangleAttention)
        tokens = op.bias.shape[1]
        places = self._in_rectangles(op)
        parts = []
        for i, (x, perm) in enumerate(((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3)))):
            x = self._node("Gather", [self._with_beyond(op, i, x), places], axis=1)  # (B, G * N, C)
            x = self._node("Reshape", [x, self._ints([0, 0, op.heads, -1])])
            x = self._node("Reshape", [x, self._ints([-1, tokens, 0, 0])])  # (B * G, N, h, d)
            parts.append(self._node("Transpose", [x], perm=list(perm)))
        if op.temperature is not None:
            name = f"{op.name}.temperature"
            temperature = self.graph.constant(name, op.temperature.reshape(-1, 1, 1))
            parts[0] = self._node("Mul", [self._of_length_1(parts[0], 3), temperature])
            parts[1] = self._of_length_1(parts[1], 2)
        scores = self._node("MatMul", parts[:2])  # (B * G, h, N, N)
        scores = self._node("Add", [scores, self.graph.constant(f"{op.name}.bias", op.bias)])
        if any(op.shift):
            scores = self._node("Add", [scores, self._rectangle_mask(op)])
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), parts[2]])
        mixed = self._node("Transpose", [mixed], perm=[0, 2, 1, 3])  # (B * G, N, h, d)
        mixed = self._node("Reshape", [mixed, self._ints([0, 0, -1])])  # (B * G, N, C)
        windows = self._shape(self.batch, self._node("Shape", [places]), [-1])
        mixed = self._node("Reshape", [mixed, windows])  # (B, G * N, C)
        return self._node("Gather", [mixed, self._out_of_rectangles(op)], axis=1)

    def _with_beyond(self, op: RectangleAttention, part: int, x: str) -> str:
        """(B, L + 1, C): of q (0), k or v with what lies beyond the map behind them."""
        if part == 0 or op.beyond is None:
            return self._node("Pad", [x, self._ints([0, 0, 0, 0, 1, 0])])
        one = self.graph.constant(f"{op.name}.beyond.{part}", op.beyond[part - 1].reshape(1, 1, -1))
        one = self._node("Expand", [one, self._shape(self.batch, [1, 1])])
        return self._node("Concat", [x, one], axis=1)

    def channel_attention(self, step: Step, q: str, k: str, v: str) -> str:
        op = step.op
        assert isinstance(op, ChannelAttention)
        parts = []
        for x, perm in ((q, (0, 2, 3, 1)), (k, (0, 2, 1, 3)), (v, (0, 2, 3, 1))):
            x = self._node("Reshape", [x, self._ints([0, 0, op.heads, -1])])  # (B, L, h, d)
            parts.append(self._node("Transpose", [x], perm=list(perm)))
        q, k = (self._of_length_1(x, axis) for x, axis in zip(parts[:2], (3, 2), strict=True))
        temperature = self.graph.constant(f"{op.name}.temperature", op.temperature.reshape(-1, 1, 1))
        scores = self._node("Mul", [self._node("MatMul", [q, k]), temperature])  # (B, h, d, d)
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), parts[2]])
        mixed = self._node("Transpose", [mixed], perm=[0, 3, 1, 2])  # (B, L, h, d)
        return self._node("Reshape", [mixed, self._ints([0, 0, -1])])

    def global_attention(self, step: Step, q: str, k: str, v: str) -> str:
        op = step.op
        assert isinstance(op, GlobalAttention)
        q, k, v = (
            self._node("Transpose", [self._node("Reshape", [x, self._ints([0, 0, op.heads, -1])])], perm=perm)
            for x, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        scores = self._node("MatMul", [q, k])  # (B, h, L, M)
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), v])
        mixed = self._node("Transpose", [mixed], perm=[0, 2, 1, 3])  # (B, L, h, d)
        return self._node("Reshape", [mixed, self._ints([0, 0, -1])])

    def _of_length_1(self, x: str, axis: int) -> str:
        """Divided by its length along an axis."""
        length = self._reduced("ReduceL2", x, axis, keepdims=1)
        return self._node("Div", [x, self._node("Max", [length, self.graph.scalar(LEAST_LENGTH)])])

    # --- indices ----------------------------------------------------------------------------------

    def _whole(self, op: RectangleAttention) -> tuple[str, str]:
        """(1,) H and (1,) W of the map that zeros continue."""
        multiple = op.multiple

        def side(axis: int) -> str:
            rounded = self._node("Add", [self.size(op.growth)[axis], self._ints([multiple - 1])])
            rounded = self._node("Div", [rounded, self._ints([multiple])])
            return self._node("Mul", [rounded, self._ints([multiple])])

        rows, columns = (self._once(("whole", multiple, op.growth, i), lambda i=i: side(i)) for i in (0, 1))  # type: ignore[misc]
        return rows, columns

    def _in_rectangles(self, op: RectangleAttention) -> str:
        """(G * N,) as `rectangles.places`."""

        def places() -> str:
            parts, grid, beyond_all = [], self.size(op.growth), self.places_of(op.growth)
            for axis, unit in ((0, grid[1]), (1, self._ints([1]))):
                whole = self._whole(op)[axis]
                at = self._node("Add", [self._range(whole), self._ints([op.shift[axis]])])
                at = self._node("Mod", [at, whole])
                beyond = self._node("GreaterOrEqual", [at, grid[axis]])
                at = self._node("Where", [beyond, beyond_all, self._node("Mul", [at, unit])])
                parts.append(self._along_rectangles(at, axis, op.window))
            found = self._node("Min", [self._node("Add", parts), beyond_all])
            return self._node("Reshape", [found, self._ints([-1])])

        return self._once(("rectangles", *_where(op)), places)

    def _out_of_rectangles(self, op: RectangleAttention) -> str:
        """(L,) as `rectangles.tokens`."""

        def tokens() -> str:
            (rows, columns), width = op.window, self._whole(op)[1]
            outer = (self._node("Mul", [width, self._ints([rows])]), self._ints([rows * columns]))
            parts = []
            for axis, inner in ((0, columns), (1, 1)):
                whole, side = self._whole(op)[axis], self._ints([op.window[axis]])
                back = self._node("Sub", [whole, self._ints([op.shift[axis]])])
                at = self._node(
                    "Mod", [self._node("Add", [self._range(self.size(op.growth)[axis]), back]), whole]
                )
                window = self._node("Mul", [self._node("Div", [at, side]), outer[axis]])
                inside = self._node("Mul", [self._node("Mod", [at, side]), self._ints([inner])])
                column = self._node("Add", [window, inside])
                parts.append(self._node("Reshape", [column, self._ints([-1, 1] if axis == 0 else [1, -1])]))
            return self._node("Reshape", [self._node("Add", parts), self._ints([-1])])

        return self._once(("out of rectangles", *_where(op)), tokens)

    def _rectangle_mask(self, op: RectangleAttention) -> str:
        """(B * G, 1, N, N) as `rectangles.mask`."""

        def mask() -> str:
            labels = []
            for axis in (0, 1):
                whole = self._whole(op)[axis]
                start = self._node("Sub", [whole, self._ints([op.shift[axis]])])
                wraps = self._node("GreaterOrEqual", [self._range(whole), start])
                label = self._node("Cast", [wraps], to=TensorProto.INT64)
                label = self._node("Mul", [label, self._ints([2 - axis])])
                labels.append(self._along_rectangles(label, axis, op.window))
            count = op.window[0] * op.window[1]
            label = self._node("Reshape", [self._node("Add", labels), self._ints([1, -1, count])])
            label = self._node("Expand", [label, self._shape(self.batch, [1, 1])])  # (B, G, N)
            pair = [
                self._node("Reshape", [label, self._ints([-1, 1, *shape])])
                for shape in ((count, 1), (1, count))
            ]  # (B * G, 1, N, 1), (B * G, 1, 1, N)
            same = self._node("Equal", pair)
            return self._node("Where", [same, self.graph.scalar(0), self.graph.scalar(MASKED)])

        return self._once(("rectangle mask", *_where(op)), mask)

    def _along_rectangles(self, x: str, axis: int, window: tuple[int, int]) -> str:
        """One number for each row (axis 0) or column of the continued map, broadcast to the rows
        and columns of windows and of pixels in them."""
        shape = [-1, 1, window[0], 1] if axis == 0 else [1, -1, 1, window[1]]
        return self._node("Reshape", [x, self._ints(shape)])
