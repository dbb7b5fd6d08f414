"""Any change of a program: one line, or a network that folds, runs in the reference, and is an ONNX
graph."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantsr.deploy import costs, operations
from quantsr.deploy.engines import onnx_model, reference, select
from quantsr.deploy.packed import written
from quantsr.deploy.packed.header import check_structure, parts_of
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError
from tests.deploy.mutations import mutated
from tests.deploy.odd_programs import ODD
from tests.deploy.programs import noise, residual, swin

BASES = [residual, lambda: swin(shifts=(0, 4)), *ODD]


def changed(model: PackedModel, rng: random.Random) -> PackedModel | None:
    """The network with a changed program, of the scale that this has; None where it is refused."""
    try:
        model = replace(model, written=written.from_json(mutated(written.to_json(model.program), rng)))
        shapes = operations.shapes_of(model.program, parts_of(model))
        scale = operations.scale_of(model.program, shapes)
        model = replace(model, header=replace(model.header, scale=scale))
        check_structure(model)
    except ValueError:
        return None
    return model


@pytest.mark.parametrize("base", range(len(BASES)))
@settings(deadline=None, max_examples=15)
@given(rng=st.randoms(use_true_random=False))
def test_a_changed_program_is_refused_or_runs(base: int, rng: random.Random) -> None:
    model = changed(BASES[base](), rng)
    if model is None:
        return
    depth = model.header.depths[-1]
    assert costs.reach(model, depth).max_area >= 1
    height, width = noise().shape[:2]
    found = reference.run(model, noise(), depth)
    assert found.shape == (height * model.header.scale, width * model.header.scale, 3)
    onnx_model.build(model, depth)
    onnx_model.build_integer(model, depth, tail="collapsed")
    with contextlib.suppress(InputError):  # a network that the kernels do not have
        select.create("native", model, depth, threads=1).run(noise()[None])
