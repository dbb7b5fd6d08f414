"""From the record of a network to its program: normalization of the picture, units of depth,
constants for each channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.program import PICTURE, Operation, Program, used
from quantsr.errors import InputError

_BLACK = (0.0, 0.0, 0.0)


Keep = Callable[[str, NDArray[np.float32]], None]


def program(operations: Sequence[Operation], result: int, multiple: int, keep: Keep) -> Program:
    """The program of recorded operations (`traced.Record`); `result` is the upscaled picture, and
    `keep` takes float tensors by their names.

    Raises:
        InputError: a unit's shortcut is used in another place than programs have.
    """
    operations = _with_picture(used(operations, result), result)
    operations = _with_normalize(operations)
    operations = _with_tanh(operations)
    operations = _with_units(operations)
    operations = _with_branches(operations)
    operations = _with_affine(operations, keep)
    return Program(used(operations, operations[-1].output), multiple).renumbered()


def _with_picture(operations: Sequence[Operation], result: int) -> list[Operation]:
    """The operation `picture` in place of the factors and constants before the result."""
    producer = {op.output: op for op in operations}
    free = max(producer, default=0) + 1
    factor, divided, value = 1.0, 1.0, result
    mean: tuple[float, ...] = _BLACK
    while value in producer and producer[value].kind in ("offset", "scale", "divide"):
        op = producer[value]
        if op.kind == "offset":
            scale = factor / divided
            mean = _sum(mean, [scale * v for v in _three(op)])
        elif op.kind == "divide" and op.attributes["number"] > 0:
            divided *= op.attributes["number"]
        elif op.kind == "scale" and op.attributes["factor"] > 0:
            factor *= op.attributes["factor"]
        else:
            break
        value = op.inputs[0]
    attributes = {"mean": list(mean), "range": divided / factor}
    return [*used(operations, value), Operation("picture", (value,), free, attributes=attributes)]


class _Affine(NamedTuple):
    """`(picture - mean) * range`"""

    mean: tuple[float, ...]
    range: float


def _with_normalize(operations: Sequence[Operation]) -> list[Operation]:
    """The operation `normalize` in place of constants that are taken from the picture."""
    found = {PICTURE: _Affine(_BLACK, 1.0)}
    made: dict[_Affine, int] = {}
    free = operations[-1].output + 1
    result: list[Operation] = []
    for op in operations:
        source = found.get(op.inputs[0])
        if source is not None and op.kind == "offset":
            change = [v / source.range for v in _three(op)]
            found[op.output] = source._replace(mean=_sum(source.mean, [-v for v in change]))
        elif source is not None and op.kind == "scale" and op.attributes["factor"] > 0:
            found[op.output] = source._replace(range=source.range * op.attributes["factor"])
        elif source is not None and op.kind == "divide" and op.attributes["number"] > 0:
            found[op.output] = source._replace(range=source.range / op.attributes["number"])
        else:
            inputs = []
            for value in op.inputs:
                if value in found:
                    affine = found[value]
                    if affine not in made:
                        attributes = {"mean": list(affine.mean), "range": affine.range}
                        result.append(Operation("normalize", (PICTURE,), free, attributes=attributes))
                        made[affine], free = free, free + 1
                    value = made[affine]
                inputs.append(value)
            result.append(replace(op, inputs=tuple(inputs)))
    return result


def _with_tanh(operations: Sequence[Operation]) -> list[Operation]:
    """`tanh(x / 2) / 2` in place of `sigmoid(x) - 1/2`, which it is (SPAN's attention has it)."""
    producer = {op.output: op for op in operations}
    free = max(producer, default=0) + 1
    result: list[Operation] = []
    for op in operations:
        sigmoid = producer.get(op.inputs[0])
        if (
            op.kind == "offset"
            and set(op.attributes["values"]) == {-0.5}
            and sigmoid is not None
            and sigmoid.kind == "sigmoid"
        ):
            half = {"factor": 0.5}
            result.append(Operation("scale", sigmoid.inputs, free, attributes=half))
            result.append(Operation("tanh", (free,), free + 1))
            op = replace(op, kind="scale", name="", inputs=(free + 1,), attributes=half)
            free += 2
        result.append(op)
    return result


def _with_units(operations: Sequence[Operation]) -> list[Operation]:
    """`shortcut` and `around` in place of sums with a factor of a unit; `divide` as `scale`."""
    producer = {op.output: op for op in operations}
    result: list[Operation] = []
    dropped = set()
    for op in operations:
        if op.kind == "divide":
            op = replace(op, kind="scale", attributes={"factor": 1 / op.attributes["number"]})
        scaled = next((v for v in op.inputs if v in producer and producer[v].kind == "unit"), None)
        if op.kind == "add" and scaled is not None:
            unit = producer[scaled]
            branch = op.inputs[1 - op.inputs.index(scaled)]
            stream = unit.inputs[0]
            dropped.add(scaled)
            if (around := _around(result, stream, branch)) is not None:
                index, total = around
                result[index] = total
                op = replace(op, kind="around", inputs=(stream, total.output), attributes=unit.attributes)
            else:
                op = replace(op, kind="shortcut", inputs=(stream, branch), attributes=unit.attributes)
        result.append(op)
    for op in result:
        if any(value in dropped for value in op.inputs) or (op.kind == "unit" and op.output not in dropped):
            raise InputError("network: uses the shortcut of a unit elsewhere than in `s * x + branch`")
    return [op for op in result if op.output not in dropped]


def _with_branches(operations: Sequence[Operation]) -> list[Operation]:
    """`shortcut` in place of `around` where the unit ends in a sum with what it reads: `s * x + b`
    for `(x + b) + (s - 1) * x`."""
    producer = {op.output: op for op in operations}
    readers = Counter(value for op in operations for value in op.inputs)
    result = []
    for op in operations:
        total = producer.get(op.inputs[-1])
        if op.kind == "around" and total is not None and total.kind == "add" and readers[total.output] == 1:
            stream, (a, b) = op.inputs[0], total.inputs
            if stream in (a, b):
                op = replace(op, kind="shortcut", inputs=(stream, b if a == stream else a))
        result.append(op)
    return result


def _with_affine(operations: Sequence[Operation], keep: Keep) -> list[Operation]:
    """`affine` in place of factors and constants for each channel: one for a factor and a constant
    behind it."""
    producer = {op.output: op for op in operations}
    reads = Counter(value for op in operations for value in op.inputs)
    fused = {
        op.inputs[0]
        for op in operations
        if op.kind == "offset"
        and reads[op.inputs[0]] == 1
        and op.inputs[0] in producer
        and producer[op.inputs[0]].kind == "factors"
    }
    count = Counter[str]()
    result: list[Operation] = []
    for op in operations:
        if op.output in fused:
            continue
        if op.kind in ("factors", "offset"):
            values = np.array(op.attributes["values"], np.float32)
            weight, bias = (values, values * 0) if op.kind == "factors" else (values * 0 + 1, values)
            if op.inputs[0] in fused:
                factors = producer[op.inputs[0]]
                weight = np.array(factors.attributes["values"], np.float32)
                op = replace(op, inputs=factors.inputs)
            count[op.name] += 1
            op = replace(op, kind="affine", name=f"{op.name}.affine{count[op.name]}", attributes={})
            keep(f"{op.name}.weight", weight)
            keep(f"{op.name}.bias", bias)
        result.append(op)
    return result


def _around(operations: Sequence[Operation], stream: int, branch: int) -> tuple[int, Operation] | None:
    """Where `branch` is a + c, and x + a is another value m: the place of the former, and m + c to
    put there, which is x + branch. For the others None."""
    places = {op.output: index for index, op in enumerate(operations)}
    if branch not in places or operations[places[branch]].kind != "add":
        return None
    total = operations[places[branch]]
    for op in operations[: places[branch]]:
        if op.kind == "add" and op.inputs == (stream, total.inputs[0]):
            return places[branch], replace(total, inputs=(op.output, total.inputs[1]))
    return None


def _three(op: Operation) -> list[float]:
    values: list[float] = op.attributes["values"]
    if len(values) != 3:
        raise InputError(
            f"network: its forward adds constants to {len(values)} channels, which no operation of programs does"
        )
    return values


def _sum(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))
