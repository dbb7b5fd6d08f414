"""The OpenVINO graph against the integer reference, and that it runs as integers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray

from quantsr.deploy.engines import openvino_model, openvino_ops
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines.openvino_core import core
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.convolutional import random_model
from tests.deploy.codes import codes_of_reference
from tests.deploy.conftest import dyadic_model

slow = pytest.mark.integration
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def _compiled(model: PackedModel, image: NDArray, **options) -> ov.CompiledModel:
    options = {"saturates": openvino_ops.integer_sums_saturate(), **options}
    graph = openvino_model.build(
        model, options.pop("depth", None), height=image.shape[0], width=image.shape[1], **options
    )
    return core().compile_model(graph, "CPU", EXACT)


def _run(model: PackedModel, image: NDArray, **options) -> NDArray:
    return _compiled(model, image, **options)([image[None]])[0][0]


def _reference_codes(model: PackedModel, image: NDArray) -> dict[str, NDArray]:
    """What every integer conv of the reference reads."""
    return codes_of_reference(model, image, model.header.depths[0])[0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_equals_the_reference(bits: int, picture) -> None:
    """Bit for bit, in a network whose constants leave nothing to round but the codes themselves."""
    model = dyadic_model(bits_w=bits, bits_a=bits)
    image = picture(20, 24)
    expected = _reference_codes(model, image)
    saturates = openvino_ops.integer_sums_saturate()
    graph = openvino_model.build(
        model, height=20, width=24, tail="layers", wide_inputs="bytes", saturates=saturates
    )
    names = [
        op.get_friendly_name() for op in graph.get_ordered_ops() if op.get_friendly_name().endswith(".input")
    ]
    assert {name.removesuffix(".input") for name in names} == set(expected) - {"conv_first"}
    graph.add_outputs([(name, 0) for name in names])
    result = core().compile_model(graph, "CPU", EXACT)([image[None]])
    for index, name in enumerate(names, start=1):
        codes = torch.from_numpy(np.array(result[index]))
        wanted = expected[name.removesuffix(".input")]
        if codes.shape[1] != len(wanted):  # the graph shuffles codes behind the quantization
            codes = torch.nn.functional.pixel_shuffle(codes, 2)
        np.testing.assert_array_equal(codes[0].numpy(), wanted, err_msg=name)
    np.testing.assert_array_equal(result[0][0], integer_reference.run(model, image))


def test_codes_of_any_network_differ_only_where_float32_rounds(picture) -> None:
    """A value on the edge of two codes may fall to the other side, and later layers see that: at
    most 1 code in 1,000, by 1."""
    model = random_model(num_feat=16, num_block=4, depths=(4,), head_tail_bits=32)
    image = picture(20, 24)
    expected = _reference_codes(model, image)
    graph = openvino_model.build(model, height=20, width=24, wide_inputs="bytes")
    graph.add_outputs([(f"{name}.input", 0) for name in expected])
    result = core().compile_model(graph, "CPU", EXACT)([image[None]])
    for index, (name, wanted) in enumerate(expected.items(), start=1):
        difference = np.abs(result[index][0] - wanted)
        assert difference.max() <= 1, name
        assert difference.mean() <= 1e-3, name


@pytest.mark.parametrize("tail", ["layers", "collapsed"])
@pytest.mark.parametrize("head_tail_bits", [16, 32])
@pytest.mark.parametrize("bits", [pytest.param(2, marks=slow), 4, pytest.param(8, marks=slow)])
def test_float_tail_within_one_of_the_reference(bits: int, head_tail_bits: int, tail, picture) -> None:
    model = random_model(
        num_feat=16, num_block=2, depths=(2, 1), bits_w=bits, bits_a=bits, head_tail_bits=head_tail_bits
    )
    image = picture(19, 23)
    for depth in (2, 1):
        difference = np.abs(
            _run(model, image, tail=tail, depth=depth).astype(int)
            - integer_reference.run(model, image, depth)
        )
        assert (difference > 1).mean() <= 0.001
        assert (difference > 0).mean() <= 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (3, 3), (4, 3)])
def test_pictures_of_any_size(size: tuple[int, int], picture) -> None:
    model = random_model(num_feat=8, num_block=1, depths=(1,), head_tail_bits=32)
    image = picture(*size)
    difference = np.abs(_run(model, image).astype(int) - integer_reference.run(model, image))
    assert difference.max() <= 1


@pytest.mark.parametrize(("bits", "shift"), [(4, 0.0), (3, 0.7), (8, -0.4)])
def test_codes_are_rounded_half_to_even_then_limited(bits: int, shift: float) -> None:
    limits = {3: (-4, 3), 4: (-8, 7), 8: (-128, 127)}[bits]
    # quarters: ties included
    x = np.linspace(-140, 140, 1121, dtype=np.float32).reshape(1, 1, 1, -1)
    parameter = openvino_ops.op.parameter(x.shape, np.float32)
    node = openvino_ops.fake_quantize(parameter, limits, "q", np.float32(shift))
    result = core().compile_model(ov.Model([node], [parameter], "q"), "CPU", EXACT)([x])[0]
    np.testing.assert_array_equal(result, np.clip(np.rint(x + np.float32(shift)), *limits))


@pytest.mark.parametrize("wide_inputs", ["float", "bytes"])
@pytest.mark.parametrize("bits", [2, *(pytest.param(bits, marks=slow) for bits in range(3, 8)), 8])
def test_quantized_convs_run_as_integers(bits: int, wide_inputs: str, picture) -> None:
    """The convs of blocks take 8-bit operands; in bytes, 16-bit inputs and kernels take two and
    three such convs. Float are the head and the ring of the collapsed tail (eight)."""
    model = random_model(num_feat=16, num_block=2, depths=(2,), bits_w=bits, bits_a=bits)
    runtime = _compiled(model, picture(16, 16), wide_inputs=wide_inputs, saturates=False).get_runtime_model()
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in runtime.get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    integers = sum(kind in ("u8", "i8") for kind in kinds)
    bodies, head = 4, 1
    if wide_inputs == "bytes":
        assert (integers, len(kinds)) == (bodies + 5, bodies + 5 + head + 8)
    else:
        assert (integers, len(kinds)) == (bodies, bodies + 2 + head + 8)


@pytest.mark.parametrize("tail", ["layers", "collapsed"])
@pytest.mark.parametrize("bits", [4, 8])
def test_wide_inputs_in_float_or_in_bytes_are_the_same_picture(bits: int, tail: str, picture) -> None:
    model = random_model(num_feat=16, num_block=2, depths=(2, 1), bits_w=bits, bits_a=bits)
    image = picture(19, 23)
    for depth in (2, 1):
        got = {
            kind: _run(model, image, tail=tail, depth=depth, wide_inputs=kind).astype(int)
            for kind in ("float", "bytes")
        }
        assert np.abs(got["float"] - got["bytes"]).max() <= 1
        assert (got["float"] != got["bytes"]).mean() <= 0.06


def test_float_pictures_are_not_rounded(small, picture) -> None:
    image = picture(12, 14)
    rounded = _run(small, image)
    exact = _compiled(small, image, float_io=True)([image[None].astype(np.float32)])[0][0]
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(np.rint(exact), rounded)
    between = _compiled(small, image, float_io=True)([image[None] + np.float32(0.4)])[0][0]
    assert np.abs(between - exact).max() > 0.1


@pytest.mark.parametrize(("bits", "integers"), [(2, 4), (7, 4), (8, 0)])
def test_saturating_processors_get_only_convs_that_cannot_overflow(bits: int, integers: int, picture) -> None:
    """8-bit codes with 8-bit weights leave the integers (body end, tail, and an 8-bit body); the
    picture stays the same."""
    model = random_model(num_feat=16, num_block=2, depths=(2,), bits_w=bits, bits_a=bits)
    image = picture(16, 16)
    runtime = _compiled(model, image, saturates=True).get_runtime_model()
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in runtime.get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    assert sum(kind in ("u8", "i8") for kind in kinds) == integers
    for tail in ("layers", "collapsed"):
        for wide_inputs in ("float", "bytes"):
            safe = _run(model, image, tail=tail, saturates=True, wide_inputs=wide_inputs).astype(int)
            assert (np.abs(safe - integer_reference.run(model, image)) > 1).mean() <= 0.002


@pytest.mark.parametrize("isa", ["AVX512_CORE", "AVX2", "SSE41"])
def test_same_picture_without_vnni(isa: str, picture, tmp_path) -> None:
    """Where OpenVINO is told to do without VNNI, products are added in 16 bits; nothing may
    overflow."""
    model = random_model(num_feat=16, num_block=2, depths=(2,))
    packing.save(model, tmp_path / "n.safetensors")
    np.save(tmp_path / "in.npy", picture(16, 18))
    code = (
        "import numpy as np; from quantsr.deploy.packed import packing; from quantsr.deploy.engines import select\n"
        f"e = select.create('openvino', packing.load({str(tmp_path / 'n.safetensors')!r}), tail='layers', threads=1)\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, e.run(np.load({str(tmp_path / 'in.npy')!r})[None]))"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    difference = np.abs(
        np.load(tmp_path / "out.npy")[0].astype(int) - integer_reference.run(model, picture(16, 18))
    )
    assert (difference > 1).mean() <= 0.002
