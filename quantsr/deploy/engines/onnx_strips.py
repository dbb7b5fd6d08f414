"""Operations on one pixel at a time, strip by strip, in ONNX graphs.

ONNX Runtime runs every node over its whole input. Maps of floats are larger than a processor's
second-level cache, so each of several nodes in a row would read and write memory. In strips of
pixels, one strip passes through all of them before the next: ONNX Runtime orders nodes depth
first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from onnx import helper

from quantsr.deploy.engines.onnx_graph import Graph
from quantsr.deploy.engines.onnx_operations import OnnxOps
from quantsr.deploy.folded import (
    Activation,
    Binary,
    Concat,
    FoldedProgram,
    Offset,
    Quantize,
    Requantize,
    Scale,
    Slice,
    Step,
)

_EACH_PIXEL = (Activation, Binary, Concat, Offset, Quantize, Requantize, Scale, Slice)


class StripOps(OnnxOps):
    """`OnnxOps` on a graph with channels last, of values that are whole maps (B, H, W, C), strips
    (B, L / count, C) of their L = H * W pixels, or both."""

    def __init__(self, graph: Graph, program: FoldedProgram, *, count: int) -> None:
        """Pictures must have `count` pixels at least."""
        assert graph.channels_last
        super().__init__(graph, program)
        self.count = count
        self.strips: dict[int, list[str]] = {}

    def run_step(self, step: Step) -> None:
        one_size = all(self.growth[value] == 1 for value in step.inputs)
        known = any(value in self.strips for value in step.inputs)
        if isinstance(step.op, _EACH_PIXEL) and one_size and known:
            run_op = self.methods[type(step.op)]
            inputs = zip(*(self.in_strips(value) for value in step.inputs), strict=True)
            self.strips[step.output] = self.each(lambda *x: run_op(self, step, *x), inputs)
            return
        for value in step.inputs:
            self.whole(value)
        super().run_step(step)

    def each(self, make: Callable[..., str], inputs: Iterable[Sequence[str]]) -> list[str]:
        """What `make` gives of every strip's inputs."""

        def strips() -> Iterator[str]:
            for i, names in enumerate(inputs):
                self.graph.suffix = f".{i}"
                yield make(*names)
            self.graph.suffix = ""

        return list(strips())

    def whole(self, value: int) -> str:
        """A value as one map."""
        if value not in self.names:
            joined = self._node("Concat", self.strips[value], axis=1)
            self.names[value] = self._node("Reshape", [joined, self._shape([0], *self.grid, [-1])])
        return self.names[value]

    def in_strips(self, value: int) -> list[str]:
        """A value as strips."""
        if value not in self.strips:
            pixels = self._node("Reshape", [self.names[value], self._shape([0], self.places, [-1])])
            self.strips[value] = self.split(pixels, 1)
        return self.strips[value]

    def split(self, x: str, axis: int) -> list[str]:
        """The strips of a tensor whose `axis` is of the L pixels."""
        outputs = [f"Split.{len(self.graph.nodes)}.{i}" for i in range(self.count)]
        self.graph.nodes.append(helper.make_node("Split", [x, self.lengths], outputs, axis=axis))
        return outputs

    @property
    def lengths(self) -> str:
        """(count,) pixels of each strip: equal numbers, and the rest in the last."""

        def lengths() -> str:
            length = self._node("Div", [self.places, self._ints([self.count])])
            others = self._node("Mul", [length, self._ints([self.count - 1])])
            last = self._node("Sub", [self.places, others])
            return self._node("Concat", [length] * (self.count - 1) + [last], axis=0)

        return self._once("lengths", lengths)
