"""Constant factors: merged into the layer before them where that does not change codes. Imports no
torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from quantsr.deploy.operations import UNITS
from quantsr.deploy.program import Operation, Program, used

_ABSORBING = ("conv", "linear", "layer_norm")
"""Kinds that take a factor into their constants, as their attribute `factor`."""


def merge(program: Program, exact: Collection[int]) -> Program:
    """The program with fewer operations `scale`.

    A scale directly behind a convolution or linear layer is always merged into it. Where values are
    not exact, the product of a run of scales goes as far up as it can: through sums into the layers
    before, and into the factors of the units that end there.
    """
    return _Merge(program, exact).run()


class _Merge:
    def __init__(self, program: Program, exact: Collection[int]) -> None:
        self.program, self.exact = program, exact
        self.readers = program.readers()
        self.operations = {op.output: op for op in program.operations}
        self.renamed: dict[int, int] = {}
        self.inserted: dict[int, list[Operation]] = {}  # in front of the operation of that output
        self.free = max(self.operations) + 1

    def run(self) -> Program:
        done: set[int] = set()
        for op in self.program.operations:
            if op.kind != "scale" or op.output in done:
                continue
            if op.output in self.exact:
                self._behind_a_layer(op)
                continue
            last, product = op, 1.0
            while True:
                product *= last.attributes["factor"]
                done.add(last.output)
                following = self.readers[last.output]
                if len(following) != 1 or following[0].kind != "scale":
                    break
                last = following[0]
            value = op.inputs[0]
            if len(self.readers[value]) == 1 and self._can_take(value):
                self.renamed[last.output] = self._push(value, product, op)
            else:
                self.operations[op.output] = replace(op, attributes={"factor": product})
                self.renamed[last.output] = op.output
        return self._finish()

    def _behind_a_layer(self, scale: Operation) -> None:
        value = scale.inputs[0]
        op = self.operations.get(value)
        reads_picture = op is not None and self.operations[op.inputs[0]].kind == "normalize"
        if op is None or op.kind not in ("conv", "linear") or reads_picture or len(self.readers[value]) != 1:
            return
        self._multiply(op, scale.attributes["factor"])
        self.renamed[scale.output] = value

    def _can_take(self, value: int) -> bool:
        op = self.operations.get(value)
        if op is None or value in self.exact:
            return False
        return op.kind in (*_ABSORBING, *UNITS, "add")

    def _push(self, value: int, product: float, reader: Operation) -> int:
        """`value` times `product`, for `reader`; returns the value that is it."""
        if len(self.readers[value]) != 1 or not self._can_take(value):
            output, self.free = self.free, self.free + 1
            scale = Operation("scale", (value,), output, attributes={"factor": product})
            self.inserted.setdefault(reader.output, []).append(scale)
            return output
        op = self.operations[value]
        if op.kind in _ABSORBING:
            self._multiply(op, product)
        elif op.kind == "add":
            inputs = tuple(self._push(v, product, op) for v in op.inputs)
            self.operations[value] = replace(op, inputs=inputs)
        else:
            stream, other = op.inputs
            other = self._push(other, product, op)
            gap = {"gap": op.attributes.get("gap", 1.0) * product}
            self.operations[value] = replace(op, inputs=(stream, other), attributes={**op.attributes, **gap})
        return value

    def _multiply(self, op: Operation, factor: float) -> None:
        factor *= op.attributes.get("factor", 1.0)
        self.operations[op.output] = replace(op, attributes={**op.attributes, "factor": factor})

    def _finish(self) -> Program:
        def final(value: int) -> int:
            while value in self.renamed and self.renamed[value] != value:
                value = self.renamed[value]
            return value

        operations = []
        for original in self.program.operations:
            op = self.operations[original.output]
            operations += self.inserted.get(op.output, [])
            if final(op.output) == op.output:
                operations.append(op)
        operations = [replace(op, inputs=tuple(final(v) for v in op.inputs)) for op in operations]
        return replace(self.program, operations=used(operations, operations[-1].output))
