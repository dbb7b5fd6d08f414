"""The passes from programs to folded programs, each by itself on programs of a few operations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantsr.deploy import operations
from quantsr.deploy.folded import (
    Attention,
    Binary,
    FirstConv,
    FoldedConv,
    FoldedProgram,
    PixelShuffle,
    Quantize,
    Reorder,
    Step,
    ToMap,
    ToTokens,
)
from quantsr.deploy.operations import Parts, Shape
from quantsr.deploy.passes import scales, units
from quantsr.deploy.passes.exact import exact_values
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out
from quantsr.deploy.passes.tail import linear_tail
from quantsr.deploy.program import PICTURE, Builder, Program, used
from tests.deploy.conftest import small_model
from tests.deploy.quantsr_t import small_model as small_swin

COLOURS = {"mean": [0.0, 0.0, 0.0], "range": 1.0}


def trunk(count: int = 3) -> Program:
    """`count` residual units between a first and a last convolution."""
    build = Builder()
    x = build.add("conv", build.add("normalize", PICTURE, **COLOURS), name="first")
    for unit in range(count):
        branch = build.add("conv", x, name=f"body.{unit}")
        x = build.add("shortcut", x, branch, unit=unit)
    build.add("picture", build.add("conv", x, name="last"), **COLOURS)
    return build.finish()


def parts(program: Program, count: int = 3) -> Parts:
    layers = {op.name: (3, 3, 3, 3) for op in program.operations if op.kind == "conv"}
    return Parts(layers, {}, {}, count)


# --- programs -------------------------------------------------------------------------------------


def test_shapes_follow_from_the_layers() -> None:
    build = Builder()
    x = build.add("conv", build.add("normalize", PICTURE, **COLOURS), name="a")
    x = build.add("pixel_shuffle", x, factor=2)
    gate = build.add("sigmoid", build.add("mean", x))
    x = build.add("concat", build.add("multiply", x, gate), x)
    build.add("picture", build.add("slice", x, start=2, stop=5), **COLOURS)
    program = build.finish()
    shapes = operations.check(program, Parts({"a": (16, 3, 3, 3)}, {}, {}, 1))
    assert [shapes[v] for v in (2, 3, 4, 6, 7)] == [
        Shape(16, 1),
        Shape(4, 2),
        Shape(4, 0),
        Shape(4, 2),
        Shape(8, 2),
    ]
    assert operations.scale_of(program, shapes) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda op: replace(op, kind="exec"), "'exec': is not an operation that this version of quantsr has"),
        (lambda op: replace(op, inputs=(9,)), "reads or writes a value out of order"),
        (lambda op: replace(op, inputs=(1, 1)), "reads 2 values"),
        (lambda op: replace(op, name=""), "has no name"),
        (lambda op: replace(op, name="body.7"), "there is no 'body.7'"),
        (
            lambda op: replace(op, attributes={"slope": 1.0}),
            r"has the attributes \['slope'\], its kind has none",
        ),
    ],
)
def test_a_program_that_cannot_run_is_one_line(change, says: str) -> None:
    program = trunk()
    operations.check(program, parts(program))
    changed = [change(op) if op.name == "body.1" else op for op in program.operations]
    with pytest.raises(ValueError, match=says) as error:
        operations.check(replace(program, operations=tuple(changed)), parts(program))
    assert "\n" not in str(error.value)


def test_parameters_that_nothing_reads_are_named() -> None:
    program = trunk()
    more = replace(parts(program), layers={**parts(program).layers, "spare": (1, 1, 1, 1)})
    with pytest.raises(ValueError, match="layer spare: is not read"):
        operations.check(program, more)


def test_listing_and_dead_operations() -> None:
    program = trunk(1)
    assert program.listing().splitlines() == [
        "%1 = normalize(picture) mean=[0, 0, 0] range=1",
        "%2 = conv(%1) 'first'",
        "%3 = conv(%2) 'body.0'",
        "%4 = shortcut(%2, %3) unit=0",
        "%5 = conv(%4) 'last'",
        "%6 = picture(%5) mean=[0, 0, 0] range=1",
    ]
    assert [op.output for op in used(program.operations, 3)] == [1, 2, 3]


def test_the_reach_of_a_pixel_counts_kernels_at_their_size() -> None:
    program = trunk()
    shapes = operations.check(program, parts(program))
    assert operations.halo(program, shapes, dict.fromkeys(parts(program).layers, 3)) == 5
    assert operations.halo(program, shapes, dict.fromkeys(parts(program).layers, 1)) == 0


# --- units and factors ----------------------------------------------------------------------------


def test_a_dropped_unit_is_its_shortcut_and_its_layers_are_dead() -> None:
    cut = units.keep(trunk(), {0, 2}, (0.5, 2.0, 3.0))
    assert [op.name for op in cut.operations if op.kind == "conv"] == ["first", "body.0", "body.2", "last"]
    assert [op.attributes["factor"] for op in cut.operations if op.kind == "scale"] == [2.0]
    assert [op.attributes["factor"] for op in cut.operations if op.kind == "shortcut"] == [0.5, 3.0]


def test_factors_of_exact_values_stay_but_for_those_behind_a_layer() -> None:
    cut = units.keep(trunk(), {0}, (0.5, 2.0, 3.0))
    merged = scales.merge(cut, exact_values(cut))
    assert [op.attributes["factor"] for op in merged.operations if op.kind == "scale"] == [2.0, 3.0]
    build = Builder()
    x = build.add("conv", build.add("normalize", PICTURE, **COLOURS), name="first")
    x = build.add("scale", build.add("conv", x, name="a"), factor=0.25)
    build.add("picture", build.add("conv", x, name="last"), **COLOURS)
    program = build.finish()
    merged = scales.merge(program, exact_values(program))
    assert [(op.kind, op.attributes.get("factor")) for op in merged.operations[:-1]] == [
        ("normalize", None),
        ("conv", None),
        ("conv", 0.25),
        ("conv", None),
    ]


def test_factors_behind_layer_norm_go_into_units_and_layers() -> None:
    build = Builder()
    x = build.add("conv", build.add("normalize", PICTURE, **COLOURS), name="first")
    x = build.add("layer_norm", x, name="norm")
    for unit in range(4):
        x = build.add("shortcut", x, build.add("conv", x, name=f"body.{unit}"), unit=unit)
    build.add("picture", build.add("conv", x, name="last"), **COLOURS)
    program = build.finish()
    exact = exact_values(program)
    assert exact == {PICTURE, 1, 2}
    merged = scales.merge(units.keep(program, {1}, (0.5, 3.0, 2.0, 5.0)), exact)
    found = {op.name or op.kind: op.attributes for op in merged.operations}
    assert "scale" not in found
    assert found["norm"] == {"factor": 0.5}  # unit 0, dropped before the first that runs
    assert found["shortcut"] == {"unit": 1, "factor": 3.0, "gap": 10.0}  # units 2 and 3 behind it
    assert found["body.1"] == {"factor": 10.0}


# --- folding --------------------------------------------------------------------------------------


def kinds(program: FoldedProgram) -> list[str]:
    return [type(step.op).__name__ for step in program.steps]


def test_codes_go_from_layer_to_layer_where_nothing_else_reads_them() -> None:
    model = small_model(num_block=1, depths=(1,), head_tail_bits=32)
    program = fold(model)
    assert kinds(program) == [
        "FirstConv",
        "Quantize",
        "FoldedConv",
        "FoldedConv",
        "Scale",
        "Binary",
        "FoldedConv",
        "Binary",
        "FoldedConv",
        "PixelShuffle",
        "FoldedConv",
        "Pixels",
    ]
    conv1, conv2 = (step.op for step in program.steps[2:4])
    assert isinstance(conv1, FoldedConv)
    assert isinstance(conv2, FoldedConv)
    assert conv1.codes_out == conv2.codes_in == model.layers["body.0.conv2"].act_range
    assert conv1.relu_at is not None
    assert conv2.codes_out is None


def test_wide_inputs_are_codes_or_floats() -> None:
    model = small_model(num_block=1, depths=(1,))
    wide, plain = fold(model), fold(model, wide_inputs=False)
    assert kinds(wide).count("Quantize") == 3
    assert kinds(plain).count("Quantize") == 1
    tails = linear_tail(wide), linear_tail(plain)
    assert tails[0] is not None
    assert tails[1] is not None
    assert isinstance(tails[0].quantize, Quantize)
    assert tails[1].quantize is None
    assert (
        [stage.shuffle for stage in tails[0].stages] == [stage.shuffle for stage in tails[1].stages] == [2, 1]
    )


@pytest.mark.parametrize(("upsampler", "stages"), [("pixelshuffle", 3), ("pixelshuffledirect", 1)])
def test_the_linear_tail_is_all_behind_the_last_sum(upsampler: str, stages: int) -> None:
    program = fold(small_model(scale=4, upsampler=upsampler))
    tail = linear_tail(program)
    assert tail is not None
    assert len(tail.stages) == stages
    assert isinstance(program.steps[tail.start - 1].op, Binary)
    assert program.steps[tail.start - 1].output == tail.value


def test_a_tail_ends_where_codes_are_coarse() -> None:
    model = small_model(scale=2)
    coarse = replace(model.layers["conv_last"], bits_a=4, act_limits=None)
    tail = linear_tail(fold(replace(model, layers={**model.layers, "conv_last": coarse})))
    assert tail is None  # what is left of it begins at the enlarged size


# --- layout ---------------------------------------------------------------------------------------


def test_convolutional_networks_keep_their_layout() -> None:
    program = fold(small_model())
    assert lay_out(program) is program


def test_tokens_move_once_between_layers() -> None:
    program = lay_out(fold(small_swin(num_block=2, layers_per_block=3)))
    order: dict[int, object] = {}
    for step in program.steps:
        if isinstance(step.op, ToTokens):
            order[step.output] = None
        elif isinstance(step.op, Reorder):
            assert order[step.inputs[0]] == step.op.old != step.op.new
            order[step.output] = step.op.new
        elif isinstance(step.op, ToMap):
            assert order[step.inputs[0]] is None
        elif isinstance(step.op, Attention):
            assert {order[value] for value in step.inputs} == {step.op.shift}
            order[step.output] = step.op.shift
        elif step.inputs[0] in order:
            assert len({order[value] for value in step.inputs}) == 1
            order[step.output] = order[step.inputs[0]]
    assert program.tokens == set(order)
    moves = [step for step in program.steps if isinstance(step.op, Reorder)]
    # Once from rows to windows and once back; in each group two for its three layers, one to the
    # rows of its convolution, and one from there.
    assert len(moves) == 1 + 1 + 2 * (2 + 1 + 1)
    maps = [step for step in program.steps if isinstance(step.op, FirstConv | PixelShuffle)]
    assert not program.tokens & {step.output for step in maps}


def test_values_are_those_of_steps_before() -> None:
    for program in (fold(small_model()), lay_out(fold(small_swin()))):
        known = {PICTURE}
        for step in program.steps:
            assert isinstance(step, Step)
            assert known.issuperset(step.inputs)
            assert step.output not in known
            known.add(step.output)
