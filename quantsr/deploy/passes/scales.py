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

    Args:
        program: at one depth; its units have the attribute `factor`, their shortcut (`units.keep`).
        exact: values of which the products stay where they are (`exact.exact_values`).

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
            if self._can_take(value):
                self.renamed[last.output] = self._push(value, product)
            else:
                self.operations[op.output] = replace(op, attributes={"factor": product})
                self.renamed[last.output] = op.output
        return self._finish()

    def _behind_a_layer(self, scale: Operation) -> None:
        value = scale.inputs[0]
        op = self.operations[value]
        if op.kind not in ("conv", "linear") or len(self.readers[value]) != 1:
            return
        if self.operations[op.inputs[0]].kind == "normalize":
            return
        self._multiply(op, scale.attributes["factor"])
        self.renamed[scale.output] = value

    def _can_take(self, value: int) -> bool:
        """Whether the operation that gives a value, which one other reads, takes a factor."""
        op = self.operations.get(value)
        if op is None or value in self.exact or len(self.readers[value]) != 1:
            return False
        return op.kind in (*_ABSORBING, *UNITS, "add")

    def _push(self, value: int, product: float) -> int:
        """`value`, which can take a factor, times `product`; returns the value that is it."""
        pending = [value]
        while pending:
            op = self.operations[pending.pop()]
            if op.kind in _ABSORBING:
                self._multiply(op, product)
                continue
            inputs, attributes = list(op.inputs), dict(op.attributes)
            for place in (0, 1) if op.kind == "add" else (1,):
                if self._can_take(inputs[place]):
                    pending.append(inputs[place])
                else:
                    inputs[place] = self._scaled(inputs[place], product, op)
            if op.kind != "add":
                attributes["gap"] = attributes.get("gap", 1.0) * product
            self.operations[op.output] = replace(op, inputs=tuple(inputs), attributes=attributes)
        return value

    def _scaled(self, value: int, product: float, reader: Operation) -> int:
        """A new operation `scale` in front of `reader`; returns its value."""
        output, self.free = self.free, self.free + 1
        scale = Operation("scale", (value,), output, attributes={"factor": product})
        self.inserted.setdefault(reader.output, []).append(scale)
        return output

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
