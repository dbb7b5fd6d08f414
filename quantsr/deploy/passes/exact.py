"""Which values every engine computes bit for bit. Imports no torch."""

from __future__ import annotations

from quantsr.deploy.operations import KINDS
from quantsr.deploy.program import PICTURE, Program


def exact_values(program: Program) -> set[int]:
    """The values that no operation lies before whose rounding is the engine's choice, such as
    LayerNorm.

    In front of such a value the float32 operations of training are kept as they are, in their
    order, so that its codes are those of training. Behind LayerNorm, softmax and the like codes can
    differ in any case, and constants are merged as far as they can be.
    """
    exact = {PICTURE}
    for op in program.operations:
        if KINDS[op.kind].exact and all(value in exact for value in op.inputs):
            exact.add(op.output)
    return exact
