"""The steps of a folded program, taken one after the other and compared with those that kernels
have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from quantsr.deploy.folded import Binary, FoldedConv, FoldedLinear, FoldedProgram, Norm, Op, Scale, Step

T = TypeVar("T")


class Unsupported(ValueError):
    """A network that the kernels cannot run; the message says why."""


@dataclass(frozen=True, eq=False)
class Taken(Generic[T]):
    """An operation, and the value that it gives."""

    op: T
    value: int


class Steps:
    """The steps of a program up to `end`. All methods that take steps raise Unsupported, naming the
    step, where another comes."""

    def __init__(self, program: FoldedProgram, end: int) -> None:
        self._steps = program.steps[:end]
        self._readers = program.readers()
        self._next = 0

    def _peek(self, ahead: int = 0) -> Step | None:
        at = self._next + ahead
        return self._steps[at] if at < len(self._steps) else None

    def at(self, kind: type[Op], *inputs: int) -> bool:
        """Whether the next step is of that kind and reads these values."""
        step = self._peek()
        return step is not None and type(step.op) is kind and step.inputs == inputs

    def take(self, kind: type[T], *inputs: int) -> Taken[T]:
        """The next step, which must be of that kind and read these values."""
        step = self._peek()
        if step is None or type(step.op) is not kind or step.inputs != inputs:
            found = "its tail" if step is None else described(step.op)
            found = f"{found} of other values" if isinstance(step, Step) and type(step.op) is kind else found
            raise Unsupported(f"{found} comes where its kernels have {kind.__name__}")
        if isinstance(step.op, FoldedConv) and step.op.groups > 1:
            raise Unsupported(f"{step.op.name} has {step.op.groups} groups")
        self._next += 1
        return Taken(step.op, step.output)

    def scale(self, x: int) -> tuple[np.float32, int]:
        """`x` times a constant: the constant, 1 where there is none, and the product."""
        if not self.at(Scale, x):
            return np.float32(1), x
        scale = self.take(Scale, x)
        return scale.op.factor, scale.value

    def scales(self, x: int) -> tuple[tuple[np.float32, ...], int]:
        """`x` times constants in turn, of which no one else reads a product."""
        factors: list[np.float32] = []
        while self.at(Scale, x) and (len(self._readers[x]) == 1 or not factors):
            factor, x = self.scale(x)
            factors.append(factor)
        return tuple(factors), x

    def add(self, a: int, b: int) -> int:
        """The sum of two values, in either order."""
        a, b = (b, a) if self.at(Binary, b, a) else (a, b)
        taken = self.take(Binary, a, b)
        if taken.op.kind != "add":
            raise Unsupported(f"{taken.op.kind} comes where its kernels have a sum")
        return taken.value

    def until_sum(self, value: int, start: int) -> tuple[Step, ...]:
        """The next steps, which read `value` and each other's results, up to the sum of the last
        one's with `start`, which may be multiplied first."""
        known, result = {value}, value
        taken: list[Step] = []
        while (step := self._peek()) is not None:
            scaled = isinstance(step.op, Scale) and step.inputs == (start,)
            added = isinstance(step.op, Binary) and set(step.inputs) == {start, result}
            if taken and (scaled or added):
                break
            if not known.issuperset(step.inputs):
                raise Unsupported(f"{described(step.op)} comes where its kernels have a convolution")
            result = step.output
            known.add(result)
            taken.append(step)
            self._next += 1
        return tuple(taken)

    def is_layer(self, x: int) -> bool:
        """Whether a Swin layer comes next."""
        following = self._peek(1)
        return self.at(Norm, x) and following is not None and type(following.op) is FoldedLinear

    def is_added(self, x: int, total: int) -> bool:
        """Whether the next step is `x` times a constant, to be added to `total`."""
        scale, following = self._peek(), self._peek(1)
        return (
            scale is not None
            and following is not None
            and scale.inputs == (x,)
            and isinstance(following.op, Binary)
            and following.inputs == (total, scale.output)
        )

    def skip(self, kind: type[Op]) -> tuple[Step, ...]:
        """The next steps, as long as they are of that kind."""
        first = self._next
        while (step := self._peek()) is not None and type(step.op) is kind:
            self._next += 1
        return self._steps[first : self._next]

    def left(self) -> tuple[Step, ...]:
        """The steps that are left."""
        return self._steps[self._next :]

    def end(self) -> None:
        """Raises Unsupported where steps are left."""
        if step := self._peek():
            raise Unsupported(f"{described(step.op)} comes where its kernels have the tail")


def described(op: Op) -> str:
    """An operation in a message."""
    name = getattr(op, "name", "") or getattr(op, "kind", "")
    return f"{type(op).__name__} {name}".strip()
