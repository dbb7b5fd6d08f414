"""A program as rows of a packed file's header (docs/reference/formats.md has the table).

Imports no torch."""

from __future__ import annotations

from typing import Any

from quantsr.deploy import operations
from quantsr.deploy.packed.rows import integer, integers
from quantsr.deploy.program import PICTURE, Operation, Program

_MAX_NAME, _MAX_MULTIPLE = 1 << 9, 64


def to_json(program: Program) -> dict[str, Any]:
    """The program as `from_json` reads it; its values are numbered in order."""
    return {
        "multiple": program.multiple,
        "operations": [_row(op) for op in program.renumbered().operations],
    }


def _row(op: Operation) -> list[Any]:
    row: list[Any] = [op.kind, list(op.inputs), op.name or None, dict(op.attributes)]
    return row if op.attributes else row[:3] if op.name else row[:2]


def from_json(raw: Any) -> Program:
    """Raises ValueError for anything but a program of known operations, each of values before it;
    `operations.check` says whether it fits the network's parts."""
    if not isinstance(raw, dict) or raw.keys() != {"multiple", "operations"}:
        raise ValueError("program: is not a table of multiple and operations")
    multiple = integer(raw["multiple"], "program: multiple", 1, _MAX_MULTIPLE)
    rows = raw["operations"]
    if not isinstance(rows, list) or not 1 <= len(rows) <= operations.MAX_OPERATIONS:
        raise ValueError(f"program: must have 1 to {operations.MAX_OPERATIONS} operations")
    return Program(tuple(_operation(row, i) for i, row in enumerate(rows, 1)), multiple)


def _operation(row: Any, output: int) -> Operation:
    where = f"program: %{output}"
    if not isinstance(row, list) or not 2 <= len(row) <= 4 or not isinstance(row[0], str):
        raise ValueError(f"{where}: is malformed")
    kind, inputs, name, attributes = [*row, None, None][:4] if len(row) < 4 else row
    inputs = tuple(integers(inputs, f"{where}: inputs", PICTURE, output - 1))
    name = "" if name is None else name
    attributes = {} if attributes is None else attributes
    if not isinstance(name, str) or len(name) > _MAX_NAME or not isinstance(attributes, dict):
        raise ValueError(f"{where}: its name or its attributes are malformed")
    op = Operation(kind, inputs, output, name, attributes)
    operations.check_alone(op)
    return op
