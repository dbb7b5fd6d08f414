"""ONNX graphs: form, shapes, and the matrix bits x engine against the integer reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from quantsr.deploy.engines import onnx_model
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines.onnx_graph import INPUT
from quantsr.errors import InputError
from tests.deploy.conftest import dyadic_model, small_model

BITS = range(2, 9)


def by_onnxruntime(proto: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {INPUT: pictures})[0]


def by_openvino(proto: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    pytest.importorskip("openvino")
    from quantsr.deploy.engines.openvino_core import core

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core().compile_model(core().read_model(proto.SerializeToString()), "CPU", settings)
    return np.array(compiled(pictures)[0])


@pytest.mark.parametrize("bits", BITS)
def test_onnxruntime_gives_the_integers_exactly(picture, bits):
    model = small_model(bits_w=bits, bits_a=bits)
    for depth in model.header.depths:
        got = by_onnxruntime(onnx_model.build(model, depth), picture[None])[0]
        np.testing.assert_array_equal(got, integer_reference.run(model, picture, depth))


def skip_where_sums_saturate(bits: int) -> None:
    """OpenVINO adds two 8-bit products in 16 bits on processors without VNNI. The graphs it is
    given by `openvino_graph` avoid that, ONNX files cannot."""
    pytest.importorskip("openvino")
    from quantsr.deploy.engines.openvino_ops import integer_sums_saturate

    if bits == 8 and integer_sums_saturate():
        pytest.skip("without VNNI, OpenVINO's sums of 8-bit codes with 8-bit weights saturate")


@pytest.mark.parametrize("bits", BITS)
def test_openvino_gives_the_integers_of_dyadic_networks_exactly(picture, bits):
    skip_where_sums_saturate(bits)
    # Without float rounding nothing is left that could tell two right runtimes apart.
    model = dyadic_model(bits_w=bits, bits_a=bits)
    got = by_openvino(onnx_model.build(model), picture[None])[0]
    np.testing.assert_array_equal(got, integer_reference.run(model, picture))


@pytest.mark.parametrize("bits", BITS)
def test_openvino_flips_few_codes_of_any_network(picture, bits):
    skip_where_sums_saturate(bits)
    # It merges scale and bias in its own order, so a code next to a tie may flip. One block: deep
    # random networks, unlike trained ones, amplify a flipped code on its way to the output.
    model = small_model(bits_w=bits, bits_a=bits, num_block=1)
    got = by_openvino(onnx_model.build(model), picture[None])[0].astype(int)
    difference = np.abs(got - integer_reference.run(model, picture))
    assert (difference <= 1).mean() >= 0.999
    assert difference.max() <= 3


@pytest.mark.parametrize("run", [by_onnxruntime, by_openvino])
@pytest.mark.parametrize("head_tail_bits", [16, 32])
def test_float_head_and_tail(picture, run, head_tail_bits):
    # Float convs add in another order than the reference, so codes may flip as above.
    model = small_model(head_tail_bits=head_tail_bits)
    got = run(onnx_model.build(model), picture[None])[0].astype(int)
    difference = np.abs(got - integer_reference.run(model, picture))
    assert (difference <= 1).mean() >= 0.999
    assert difference.max() <= 3


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_scales_and_pixel_shuffles(picture, scale, upsampler):
    model = small_model(scale=scale, upsampler=upsampler)
    got = by_onnxruntime(onnx_model.build(model), picture[None])[0]
    np.testing.assert_array_equal(got, integer_reference.run(model, picture))


def test_one_graph_takes_any_batch_and_size(picture):
    model = small_model()
    proto = onnx_model.build(model)
    for pictures in (picture[None, :1, :1], np.stack([picture[:7, :5], picture[3:10, 4:9]])):
        got = by_onnxruntime(proto, pictures)
        for one, expected in zip(got, pictures, strict=True):
            np.testing.assert_array_equal(one, integer_reference.run(model, expected))


def test_values_beyond_the_range_saturate(picture):
    model = small_model()
    for extreme in (0, 255):
        image = np.full_like(picture, extreme)
        got = by_onnxruntime(onnx_model.build(model), image[None])[0]
        np.testing.assert_array_equal(got, integer_reference.run(model, image))


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_int4_weights(picture, bits):
    model = small_model(bits_w=bits, bits_a=bits, num_feat=16)
    plain, packed = onnx_model.build(model), onnx_model.build(model, int4=True)
    types = Counter(tensor.data_type for tensor in packed.graph.initializer)
    assert types[onnx.TensorProto.INT4] == (8 if bits <= 4 else 0)
    assert packed.opset_import[0].version == 21
    if bits <= 4:
        assert packed.ByteSize() < plain.ByteSize() - 8 * 16 * 16 * 9 * 0.4
    np.testing.assert_array_equal(
        by_onnxruntime(packed, picture[None])[0], integer_reference.run(model, picture)
    )


def test_the_graph_is_of_integers():
    model = small_model()
    proto = onnx_model.build(model, 2)
    onnx.checker.check_model(proto, full_check=True)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["Conv"] == 1 + 2 * 2 + 1 + 1 + 1
    # The weight of every conv, and the input of all but the three whose 16-bit codes are float32
    # already.
    assert kinds["DequantizeLinear"] == 2 * kinds["Conv"] - 3
    weights = {t.name: t for t in proto.graph.initializer if t.name.endswith(".weight")}
    assert len(weights) == kinds["Conv"]
    assert all(t.data_type == onnx.TensorProto.INT8 for t in weights.values())
    shuffle = next(node for node in proto.graph.node if node.op_type == "DepthToSpace")
    assert {a.name: a for a in shuffle.attribute}["mode"].s == b"CRD"
    image, upscaled = proto.graph.input[0], proto.graph.output[0]
    for value in (image, upscaled):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == [
        "n",
        "height",
        "width",
        3,
    ]


@pytest.mark.integration
def test_openvino_runs_the_convs_in_int8():
    pytest.importorskip("openvino")
    from quantsr.deploy.engines.openvino_core import core

    model = small_model(num_feat=32, num_block=2)
    compiled = core().compile_model(core().read_model(onnx_model.build(model).SerializeToString()), "CPU")
    kinds = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if info["layerType"].value == "Convolution":
            kinds[info["runtimePrecision"].value] += 1
    # Those of the blocks; the others read floats or 16-bit codes, which only our own OpenVINO graph
    # runs as integers.
    assert kinds["i8"] + kinds["u8"] == 2 * 2


def test_unknown_depths_are_refused():
    with pytest.raises(InputError, match="choose one of"):
        onnx_model.build(small_model(), 3)


def test_saving(tmp_path, picture):
    model = small_model()
    onnx_model.save(onnx_model.build(model), tmp_path / "net.onnx")
    got = by_onnxruntime(onnx.load(tmp_path / "net.onnx"), picture[None])[0]
    np.testing.assert_array_equal(got, integer_reference.run(model, picture))
