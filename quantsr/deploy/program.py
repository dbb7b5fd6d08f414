"""The program of a network: its operations in order, on the values between them. Imports no torch.

A program is data: names of operations (`operations.py` has them all), of layers and of float
tensors, and numbers. It is stored in the packed file (docs/reference/formats.md), so that a file
runs without the Python code of its network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

PICTURE = 0
"""The value that is the picture itself; all others are results of operations."""


@dataclass(frozen=True)
class Operation:
    """One operation: `output = kind(*inputs)`."""

    kind: str
    """A key of `operations.KINDS`."""
    inputs: tuple[int, ...]
    """Values that it reads."""
    output: int
    """The value that it computes; no other operation has the same."""
    name: str = ""
    """Of its layer, or the prefix of its float tensors and operands; empty where it has none."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and lists of numbers."""


@dataclass(frozen=True)
class Program:
    """A whole network, from the picture to the operation `picture`, which is the last one."""

    operations: tuple[Operation, ...]
    multiple: int = 1
    """Pictures are continued by reflection to multiples of this many rows and columns, and the
    result is cropped."""

    def producer(self, value: int) -> Operation | None:
        """The operation that computes `value`; None for the picture."""
        return next((op for op in self.operations if op.output == value), None)

    def readers(self) -> dict[int, list[Operation]]:
        """The operations that read each value, in order; every value has an entry."""
        found: dict[int, list[Operation]] = {PICTURE: []}
        for op in self.operations:
            for value in op.inputs:
                found[value].append(op)
            found[op.output] = []
        return found

    def renumbered(self) -> Program:
        """The same program with the values 1, 2, ... in the order of the operations."""
        number = {PICTURE: PICTURE} | {op.output: i for i, op in enumerate(self.operations, 1)}
        return replace(
            self,
            operations=tuple(
                replace(op, inputs=tuple(number[v] for v in op.inputs), output=number[op.output])
                for op in self.operations
            ),
        )

    def listing(self, comments: Mapping[int, str] | None = None) -> str:
        """One line an operation, for people; `comments` are put behind those of these values."""
        lines = []
        for op in self.operations:
            values = ", ".join(f"%{v}" if v else "picture" for v in op.inputs)
            words = [repr(op.name)] if op.name else []
            words += [f"{key}={_text(value)}" for key, value in op.attributes.items()]
            line = f"%{op.output} = {op.kind}({values}) {' '.join(words)}".rstrip()
            comment = (comments or {}).get(op.output)
            lines.append(f"{line:<72} # {comment}" if comment else line)
        if self.multiple > 1:
            lines.insert(0, f"# on pictures continued to multiples of {self.multiple} pixels")
        return "\n".join(lines)


class Builder:
    """Appends operations to a program in the making."""

    def __init__(self, multiple: int = 1) -> None:
        self._operations: list[Operation] = []
        self._multiple = multiple

    def add(self, kind: str, *inputs: int, name: str = "", **attributes: Any) -> int:
        """Append an operation; returns its value."""
        output = len(self._operations) + 1
        self._operations.append(Operation(kind, inputs, output, name, attributes))
        return output

    def finish(self) -> Program:
        """The program."""
        return Program(tuple(self._operations), self._multiple)


def used(operations: Sequence[Operation], result: int) -> tuple[Operation, ...]:
    """The operations that `result` depends on, in order."""
    needed, kept = {result}, []
    for op in reversed(operations):
        if op.output in needed:
            kept.append(op)
            needed.update(op.inputs)
    return tuple(reversed(kept))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
