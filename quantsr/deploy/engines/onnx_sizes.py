"""What in an ONNX graph follows from the size of its input, computed in the graph, once for all
operations that need it: the reflected rows and columns, the order of tokens in windows, the mask of
shifted windows."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from onnx import TensorProto

from quantsr.deploy.engines.onnx_graph import INPUT, Graph
from quantsr.deploy.folded import MASKED, FoldedProgram, Order


class Sizes:
    """Nodes of index tensors, and their names, in a graph of a program."""

    def __init__(self, graph: Graph, program: FoldedProgram) -> None:
        self.graph, self.program = graph, program
        self.known: dict[object, str] = {}

    def _once(self, key: object, make: Callable[[], str]) -> str:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    @property
    def shape(self) -> str:
        """Of the input."""
        return self._once("shape", lambda: self._node("Shape", [INPUT]))

    @property
    def batch(self) -> str:
        """(1,) pictures."""
        return self._once("batch", lambda: self._node("Gather", [self.shape, self._ints([0])]))

    @property
    def sizes(self) -> tuple[str, str]:
        """(1,) height and (1,) width of the picture."""
        height, width = (
            self._once(("size", i), lambda i=i: self._node("Gather", [self.shape, self._ints([i])]))  # type: ignore[misc]
            for i in (1, 2)
        )
        return height, width

    @property
    def grid(self) -> tuple[str, str]:
        """(1,) H and (1,) W of the padded picture."""
        unit = self.program.multiple
        height, width = (
            self._once(("grid", i), lambda i=i: self._node("Mul", [self._cells(unit)[i], self._ints([unit])]))  # type: ignore[misc]
            for i in (0, 1)
        )
        return height, width

    def size(self, growth: Fraction) -> tuple[str, str]:
        """(1,) height and (1,) width of maps `growth` times as large as the padded picture, as
        `folded.side`."""
        if growth == 1:
            return self.grid
        if growth == 0:
            return self._ints([1]), self._ints([1])

        def grown(axis: int) -> str:
            def side() -> str:
                size = self._node("Mul", [self.grid[axis], self._ints([growth.numerator])])
                if growth.denominator == 1:
                    return size
                size = self._node("Div", [size, self._ints([growth.denominator])])
                return self._node("Max", [size, self._ints([1])])

            return self._once(("grown", axis, growth), side)

        return grown(0), grown(1)

    @property
    def places(self) -> str:
        """(1,) L"""
        return self._once("places", lambda: self._node("Mul", list(self.grid)))

    def places_of(self, growth: Fraction) -> str:
        """(1,) pixels of maps `growth` times as large as the padded picture."""
        if growth == 1:
            return self.places
        return self._once(("places", growth), lambda: self._node("Mul", list(self.size(growth))))

    def _pooled(self, axis: int, old: Fraction, new: Fraction) -> str:
        """(rows of the result, L) rows of a map `old` times as large as the padded picture that
        each row of one `new` times as large is the largest of, some several times; or columns."""

        def pooled() -> str:
            size, count, one = self.size(old)[axis], self.size(new)[axis], self._ints([1])
            first = self._node("Mul", [self._range(count), size])  # times count
            end = self._node("Add", [first, self._node("Add", [size, self._node("Sub", [count, one])])])
            first, end = (self._node("Div", [x, count]) for x in (first, end))
            most = self._largest(self._node("Sub", [end, first]), 0, keepdims=1)
            column = self._ints([-1, 1])
            first, last = (self._node("Reshape", [x, column]) for x in (first, self._node("Sub", [end, one])))
            return self._node("Min", [self._node("Add", [first, self._range(most)]), last])

        return self._once(("pooled", axis, old, new), pooled)

    def _nearest(self, axis: int, old: Fraction, new: Fraction) -> str:
        """(rows of the result,) row of a map `old` times as large as the padded picture that each
        row of one `new` times as large is; or columns."""

        def nearest() -> str:
            size, count = self.size(old)[axis], self.size(new)[axis]
            return self._node("Div", [self._node("Mul", [self._range(count), size]), count])

        return self._once(("nearest", axis, old, new), nearest)

    def _cells(self, window: int) -> tuple[str, str]:
        """(1,) rows and (1,) columns of windows."""

        def count(axis: int) -> str:
            if window != self.program.multiple:
                return self._node("Div", [self.grid[axis], self._ints([window])])
            rounded = self._node("Add", [self.sizes[axis], self._ints([window - 1])])
            return self._node("Div", [rounded, self._ints([window])])

        rows, columns = (self._once(("cells", window, i), lambda i=i: count(i)) for i in (0, 1))  # type: ignore[misc]
        return rows, columns

    def _reflected(self, axis: int) -> str:
        """Index of each padded row or column in the picture: 0, 1, ..., size - 1, size - 2, ..."""
        one = self._ints([1])
        period = self._node("Mul", [self._node("Sub", [self.sizes[axis], one]), self._ints([2])])
        period = self._node("Max", [period, one])
        position = self._node("Mod", [self._range(self.grid[axis]), period])
        return self._node("Min", [position, self._node("Sub", [period, position])])

    def _order(self, window: int, old: Order, new: Order) -> str:
        """(L,) as `windows.order_index`."""
        if ("order", window, old, new) not in self.known:
            index = self._range(self.places)
            if old is not None:
                windows = self._shape(*self._cells(window), [window, window])
                index = self._node("Reshape", [index, windows])  # (H / w, W / w, w, w)
                index = self._node("Transpose", [index], perm=[0, 2, 1, 3])  # (H / w, w, W / w, w)
                index = self._node("Reshape", [index, self._shape(*self.grid)])  # (H, W)
                index = self._rolled(index, -old)
            if new is not None:
                index = self._rolled(self._node("Reshape", [index, self._shape(*self.grid)]), new)
                index = self._windowed(index, window)
            self.known["order", window, old, new] = self._node("Reshape", [index, self._ints([-1])])
        return self.known["order", window, old, new]

    def _overlapping(self, x: str, window: int, overlap: int) -> str:
        """(B, L, C) as (B, G * M, C), as `windows.overlapping_tokens`."""

        def index() -> str:
            axes = []
            for axis in (0, 1):
                # what a row, or column, adds to the place of a token; L beyond the map
                size, one = self.grid[axis], self.grid[1] if axis == 0 else self._ints([window])
                first = self._node("Mul", [self._range(self._cells(window)[axis]), self._ints([window])])
                offsets = self.graph.constant(
                    f"offsets.{window}.{overlap}", np.arange(-overlap, window + overlap)
                )
                at = self._node("Add", [self._node("Reshape", [first, self._ints([-1, 1])]), offsets])
                inside = self._node("Mod", [at, self._ints([window])])
                before = self._node("Mul", [self._node("Sub", [at, inside]), one])
                inside = self._node("Mul", [inside, self._ints([window])]) if axis == 0 else inside
                beyond = self._node(
                    "Or",
                    [self._node("Less", [at, self._ints([0])]), self._node("GreaterOrEqual", [at, size])],
                )
                places = self._node("Where", [beyond, self.places, self._node("Add", [before, inside])])
                side = window + 2 * overlap
                shape = [-1, 1, side, 1] if axis == 0 else [1, -1, 1, side]
                axes.append(self._node("Reshape", [places, self._ints(shape)]))
            found = self._node("Min", [self._node("Add", axes), self.places])
            return self._node("Reshape", [found, self._ints([-1])])

        # (B, L + 1, C)
        x = self._node("Pad", [x, self._ints([0, 0, 0, 0, 1, 0])])
        return self._node("Gather", [x, self._once(("overlapping", window, overlap), index)], axis=1)

    def _mask(self, window: int, shift: int) -> str:
        """(B * G, 1, N, N) as `windows.mask`."""
        if ("mask", window, shift) not in self.known:
            labels = []
            for size in self.grid:
                position = self._range(size)
                parts = [
                    self._node(
                        "Cast",
                        [
                            self._node(
                                "GreaterOrEqual", [position, self._node("Sub", [size, self._ints([n])])]
                            )
                        ],
                        to=TensorProto.INT64,
                    )
                    for n in (window, shift)
                ]
                labels.append(self._node("Add", parts))
            rows = self._node("Mul", [labels[0], self._ints([3])])
            rows = self._node("Reshape", [rows, self._ints([-1, 1])])  # (H, 1)
            places = self._windowed(self._node("Add", [rows, labels[1]]), window)  # (G, N)
            every = self._node("Expand", [places, self._shape(self.batch, [1, 1])])  # (B, G, N)
            pair = [
                self._node("Reshape", [every, self._ints([-1, 1, *shape])])
                for shape in ((window**2, 1), (1, window**2))
            ]  # (B * G, 1, N, 1), (B * G, 1, 1, N)
            same = self._node("Equal", pair)
            self.known["mask", window, shift] = self._node(
                "Where", [same, self.graph.scalar(0), self.graph.scalar(MASKED)]
            )
        return self.known["mask", window, shift]

    def _rolled(self, grid: str, shift: int) -> str:
        """(H, W) shifted cyclically up and to the left by `shift`, or down and to the right by
        `-shift`."""
        if shift == 0:
            return grid
        for axis in (0, 1):
            cut, end, axes = self._ints([shift]), self._ints([np.iinfo(np.int64).max]), self._ints([axis])
            front = self._node("Slice", [grid, self._ints([0]), cut, axes])
            back = self._node("Slice", [grid, cut, end, axes])
            grid = self._node("Concat", [back, front], axis=axis)
        return grid

    def _windowed(self, grid: str, window: int) -> str:
        """(H, W) as (G, N)."""
        rows, columns = self._cells(window)
        parts = self._shape(rows, [window], columns, [window])
        split = self._node("Reshape", [grid, parts])  # (H / w, w, W / w, w)
        split = self._node("Transpose", [split], perm=[0, 2, 1, 3])  # (H / w, W / w, w, w)
        return self._node("Reshape", [split, self._ints([-1, window**2])])  # (G, N)

    # --- nodes ------------------------------------------------------------------------------------

    def _node(self, op: str, inputs: list[str], **attributes: object) -> str:
        """A node with a name of its own."""
        return self.graph.node(op, inputs, f"{op}.{len(self.graph.nodes)}", **attributes)

    def _on_planes(self, op: str, inputs: list[str], **attributes: object) -> str:
        """The same, as `Graph.on_planes`."""
        return self.graph.on_planes(op, inputs, f"{op}.{len(self.graph.nodes)}", **attributes)

    def _largest(self, x: str, axis: int, keepdims: int = 0) -> str:
        """Along an axis."""
        return self._reduced("ReduceMax", x, axis, keepdims)

    def _reduced(self, op: str, x: str, axis: int, keepdims: int) -> str:
        """The operator ReduceMax, ReduceL2 and the like along an axis, which is an attribute before
        opset 18."""
        if self.graph.int4:
            return self._node(op, [x, self._ints([axis])], keepdims=keepdims)
        return self._node(op, [x], axes=[axis], keepdims=keepdims)

    def _ints(self, values: list[int]) -> str:
        name = f"ints.{'.'.join(map(str, values))}"
        return self.graph.constant(name, np.array(values, np.int64))

    def _shape(self, *parts: str | list[int]) -> str:
        """A shape from names of (1,) tensors and numbers."""
        names = [part if isinstance(part, str) else self._ints(part) for part in parts]
        return self._node("Concat", names, axis=0) if len(names) > 1 else names[0]

    def _range(self, count: str) -> str:
        """0, 1, ..., count - 1 for a (1,) tensor."""
        limits = [self.graph.constant(f"int.{n}", np.array(n, np.int64)) for n in (0, 1)]
        end = self._node("Squeeze", [count, self._ints([0])])
        return self._node("Range", [limits[0], end, limits[1]])
