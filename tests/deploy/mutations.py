"""Random changes of programs, by a given random generator."""

from __future__ import annotations

import copy
import random
from typing import Any

from quantsr.deploy import operations

_ATTRIBUTES = [0, 1, 2, 3, 4, 8, 0.5, -1.0, [0.1, 0.2, 0.3]]
_NUMBERS = [0, 1, 2, 3, 4, 8, 16, 0.0, -1.0, 1e-30, 1e29, -5e28, 1e-6, 1e6]


def mutated(program: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy of a program, as the header has it, with one or two places changed."""
    program = copy.deepcopy(program)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((_read_others, _other_kind, _other_attribute, _insert, _other_multiple, _delete))(
            program, rng
        )
    return program


def _row(program: dict[str, Any], rng: random.Random) -> tuple[int, list[Any]]:
    place = rng.randrange(len(program["operations"]))
    return place, program["operations"][place]


def _read_others(program: dict[str, Any], rng: random.Random) -> None:
    place, row = _row(program, rng)
    row[1] = [rng.randrange(place + 1) for _ in row[1]]


def _other_kind(program: dict[str, Any], rng: random.Random) -> None:
    _, row = _row(program, rng)
    kind = rng.choice(sorted(operations.KINDS))
    attributes = {key: rng.choice(_ATTRIBUTES) for key in operations.KINDS[kind].attributes}
    row[:] = [kind, row[1], row[2] if len(row) > 2 else None, attributes]


def _other_attribute(program: dict[str, Any], rng: random.Random) -> None:
    _, row = _row(program, rng)
    if len(row) == 4 and row[3]:
        row[3][rng.choice(sorted(row[3]))] = rng.choice(_NUMBERS)


def _insert(program: dict[str, Any], rng: random.Random) -> None:
    """Behind an operation, whose readers then read the new one."""
    place, _ = _row(program, rng)
    value, rows = place + 1, program["operations"]
    for row in rows[place + 1 :]:
        row[1] = [other + 1 if other >= value else other for other in row[1]]
    new: list[list[Any]] = [
        *([kind, [value]] for kind in ("relu", "gelu", "mean", "sigmoid")),
        *([kind, [value, value]] for kind in ("add", "multiply", "concat")),
        ["upsample_nearest", [value], None, {"factor": 2}],
        ["slice", [value], None, {"start": 0, "stop": 3}],
        ["scale", [value], None, {"factor": rng.choice((0.5, -1, 0, 1e20))}],
    ]
    rows.insert(place + 1, rng.choice(new))


def _other_multiple(program: dict[str, Any], rng: random.Random) -> None:
    program["multiple"] = rng.choice((1, 2, 4, 8, 16, 64))


def _delete(program: dict[str, Any], rng: random.Random) -> None:
    """An operation, whose readers then read the one before it."""
    place, _ = _row(program, rng)
    value, rows = place + 1, program["operations"]
    if len(rows) > 1:
        del rows[place]
    for row in rows[place:]:
        row[1] = [max(other - 1, 0) if other >= value else other for other in row[1]]
