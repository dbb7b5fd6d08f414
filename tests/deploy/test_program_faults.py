"""Programs at the edge of what a file can hold: every engine computes them as the integer reference
does, or the file is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantsr import Upscaler
from quantsr.deploy import costs
from quantsr.deploy.engines import onnx_model
from quantsr.deploy.engines.reference import run
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed.header import check_structure
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError
from tests.deploy.native import needs_kernels
from tests.deploy.odd_programs import ODD
from tests.deploy.programs import COLOURS, Written, loaded, noise, refused, residual, swin
from tests.reference import program as definition

ENGINES = ("onnxruntime", "openvino", "torch", "auto")


def changed(model: PackedModel, layer: str, **fields: object) -> PackedModel:
    return replace(model, layers={**model.layers, layer: replace(model.layers[layer], **fields)})


# --- every engine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_every_engine_gives_the_references_picture(make, engine: str, tmp_path: Path) -> None:
    if engine != "auto":
        pytest.importorskip(engine)
    model = loaded(make(), tmp_path)
    expected = run(model, noise())
    assert expected.std() > 20
    difference = np.abs(Upscaler(model, engine=engine, threads=1)(noise()).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.98


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_the_reference_computes_them_as_they_are_defined(make) -> None:
    model = make()
    difference = np.abs(run(model, noise()).astype(int) - definition.run(model, noise(), 1))
    assert difference.max() <= 1


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_all_are_onnx_files(make) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    proto = onnx_model.build(make())
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": noise()[None]})
    assert np.abs(found[0].astype(int) - run(make(), noise())).max() <= 1


def test_a_second_window_that_is_multiplied_by_0_changes_nothing() -> None:
    def net(second: bool) -> PackedModel:
        net = Written(8)
        x = net.norm(net.conv(net.x, "first", 16, 3), "norm", 16, 20)
        y = net.attention(net.conv(x, "qkv", 48, 16, 0), "attn", 2, 4, 2)
        if second:
            z = net.attention(net.conv(x, "qkv8", 48, 16, 0), "attn8", 2, 8, 4)
            y = net.add("add", y, net.add("scale", z, factor=0.0))
        net.rng = np.random.default_rng(1)  # the last weights are the same
        return net.finish(net.conv(y, "last", 3, 16))

    np.testing.assert_array_equal(run(net(True), noise()), run(net(False), noise()))


@needs_kernels
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (swin(window=4, multiple=16), "attn.0 has windows of 4 on multiples of 16 pixels"),
        (swin(window=8, multiple=64), "attn.0 has windows of 8 on multiples of 64 pixels"),
        (swin(inner=32), r"qkv.0.q has a weight of shape \(32, 16\), not \(16, 16\)"),
        (swin(fc2_outputs=1), r"fc2.0 has a weight of shape \(1, 32\)"),
        (swin(hidden=4100), "it has more than 4096 channels"),
    ],
)
def test_the_kernels_refuse_layers_of_other_shapes(model: PackedModel, says: str) -> None:
    check_structure(model)
    with pytest.raises(InputError, match=says):
        NativeEngine(model, 1)


@needs_kernels
def test_the_kernels_run_what_they_have() -> None:
    model = swin(shifts=(0, 4))
    difference = np.abs(NativeEngine(model, 1).run(noise()[None])[0].astype(int) - run(model, noise()))
    assert difference.max() <= 1


# --- one line -------------------------------------------------------------------------------------


def pixels(**fields: object) -> PackedModel:
    """A first convolution whose codes are the pixels."""
    net = Written()
    zero = np.array([102, 51, 153])
    how = {"act_step": np.ones(1, np.float32), "act_signed": False, "act_tau": zero.astype(np.float32)}
    x = net.quantized(net.x, "first", 16, 3, bits=8, act_zero_point=zero.astype(np.int32), **how)
    model = net.finish(net.conv(x, "last", 3, 16))
    return changed(model, "first", **fields)


def linear_with_zero_points() -> PackedModel:
    net = Written()
    x = net.conv(net.x, "first", 16, 3)
    x = net.quantized(x, "linear", 16, 16, 0, bits=8, act_zero_point=np.full(16, 3, np.int32))
    return net.finish(net.conv(x, "last", 3, 16))


def wide_inputs(limits: tuple[int, int]) -> PackedModel:
    net = Written()
    x = net.quantized(net.conv(net.x, "first", 16, 3), "wide", 16, 16, bits=8, bits_a=16, act_limits=limits)
    return net.finish(net.conv(x, "last", 3, 16))


def units_numbered(*numbers: int) -> PackedModel:
    net = Written()
    x = net.conv(net.x, "first", 8, 3)
    for unit in numbers:
        x = net.add("shortcut", x, net.conv(x, f"unit.{unit}", 8, 8), unit=unit)
    return net.finish(net.conv(x, "last", 3, 8), units=2, depths=(2, 1), ranking=(1, 0))


def ended_by(kind: str, **attributes: object) -> PackedModel:
    """An operation on a mean, then times the map."""
    net = Written()
    x = net.conv(net.x, "first", 4, 3)
    y = net.add(kind, net.add("mean", x), **attributes)
    y = net.add("slice", y, start=0, stop=1)
    return net.finish(net.conv(net.add("multiply", x, y), "last", 3, 4))


def with_colours(**colours: object) -> PackedModel:
    model = residual()
    first = replace(model.program.operations[0], attributes={**COLOURS, **colours})
    return replace(model, written=replace(model.program, operations=(first, *model.program.operations[1:])))


def scaled_by(factor: float) -> PackedModel:
    net = Written()
    x = net.add("scale", net.conv(net.x, "first", 8, 3), factor=factor)
    return net.finish(net.conv(x, "last", 3, 8))


def step_of(step: float) -> PackedModel:
    return changed(residual(), "c1", act_step=np.array([step], np.float32))


REFUSED = {
    "zero points in a block": (
        lambda: residual(act_zero_point=np.full(16, 3, np.int32)),
        "c1: only a convolution of the picture, of 8-bit codes, has zero points",
    ),
    "zero points of a linear layer": (linear_with_zero_points, "linear: only a convolution of the picture"),
    "zero points beyond a range": (
        lambda: pixels(act_limits=(0, 150)),
        "first: its zero points are not among its codes, 0 to 150",
    ),
    "a range of 16 bits": (lambda: wide_inputs((-300, 100)), "wide: codes of 16 bits have no range"),
    "a missing unit": (lambda: units_numbered(1), "its units are not 0 to 1"),
    "a unit twice": (lambda: units_numbered(0, 0), "its units are not 0 to 1"),
    "a unit out of range": (lambda: units_numbered(0, 2), "its units are not 0 to 1"),
    "a shuffled mean": (lambda: ended_by("pixel_shuffle", factor=2), "one number for each channel"),
    "an enlarged mean": (lambda: ended_by("upsample_nearest", factor=2), "one number for each channel"),
    "a tiny range": (lambda: with_colours(range=1e-300), "attribute range is out of range"),
    "a huge range": (lambda: with_colours(range=1e20), "attribute range is out of range"),
    "a factor that underflows": (lambda: scaled_by(1e-30), "attribute factor is out of range"),
    "a factor that overflows": (lambda: scaled_by(1e20), "attribute factor is out of range"),
    "a step that underflows": (lambda: step_of(1e-44), "c1: a step is not between 1e-18 and 1e18"),
    "a step that overflows": (lambda: step_of(1e30), "c1: a step is not between"),
    "a shortcut that underflows": (
        lambda: replace(residual(), header=replace(residual().header, shortcuts=(1e-30,))),
        "a shortcut .* too small",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_engines_cannot_compute_alike_is_one_line(name: str, tmp_path: Path) -> None:
    make, says = REFUSED[name]
    refused(make(), tmp_path, says)


@pytest.mark.parametrize("make", [pixels, lambda: scaled_by(0.0), lambda: step_of(1e-17)])
def test_what_is_next_to_a_bound_runs(make: Callable[[], PackedModel], tmp_path: Path) -> None:
    run(loaded(make(), tmp_path), noise())


def test_a_name_of_a_dropped_unit_may_be_another_operations() -> None:
    """A PReLU and a convolution of one name, of which one depth has the convolution alone."""
    net = Written()
    x = net.conv(net.x, "a", 8, 3)
    for unit, name in enumerate(("p", "a")):
        net.tensor(f"{name}.weight", np.full(8, 0.5))
        x = net.add("shortcut", x, net.build.add("prelu", x, name=name), unit=unit)
    model = net.finish(net.conv(x, "last", 3, 8), units=2, depths=(2, 1), ranking=(0, 1))
    check_structure(model)
    assert [costs.reach(model, depth).halo for depth in (2, 1)] == [2, 2]
