"""Graphs that ONNX Runtime computes in integers: codes, pictures and kernels."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from quantsr.deploy.engines import onnx_model, reference
from quantsr.deploy.engines.onnx_graph import INPUT, Graph
from quantsr.deploy.engines.onnx_integer import DOMAIN, IntegerOps
from quantsr.deploy.folded import (
    Activation,
    Binary,
    Concat,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    Mean,
    Normalize,
    Pixels,
    PixelShuffle,
    Quantize,
    Slice,
    Step,
    UpsampleNearest,
)
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.integer_scales import codes_of_sums, integer_conv
from quantsr.deploy.stand_ins import transformer
from quantsr.trained_files.names import find_packed
from tests.deploy.conftest import small_model
from tests.deploy.test_onnx_form import SHIPPED_DEPTHS, depths_of
from tests.deploy.test_operations import CHANNELS, Net

onnxruntime = pytest.importorskip("onnxruntime")


def session(proto: onnx.ModelProto, optimized: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def upscaled(proto: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    return session(proto).run(None, {INPUT: pictures})[0]


def with_limits(model: PackedModel, low: int, high: int) -> PackedModel:
    """The network with these codes in front of the first convolution of every block."""
    layers = {
        name: replace(layer, act_limits=(low, high)) if name.endswith("conv1") else layer
        for name, layer in model.layers.items()
    }
    changed = replace(model, layers=layers)
    return replace(changed, header=replace(model.header, format_version=changed.format_version))


@pytest.mark.parametrize("bits", range(2, 9))
def test_pictures_equal_the_reference(picture, bits):
    model = small_model(bits_w=bits, bits_a=bits)
    for depth in model.header.depths:
        got = upscaled(onnx_model.build_integer(model, depth), picture[None])[0]
        np.testing.assert_array_equal(got, reference.run(model, picture, depth))


@pytest.mark.parametrize("options", [{"per_channel": True}, {"first_bits": 8}, {"bits_w": 2}])
def test_other_networks_equal_the_reference(picture, options):
    model = small_model(**options)
    got = upscaled(onnx_model.build_integer(model), picture[None])[0]
    np.testing.assert_array_equal(got, reference.run(model, picture))


def test_codes_that_are_no_power_of_two_equal_the_reference(picture):
    model = with_limits(small_model(), -3, 7)
    got = upscaled(onnx_model.build_integer(model), picture[None])[0]
    np.testing.assert_array_equal(got, reference.run(model, picture))


@pytest.mark.parametrize("quantized", [True, False])
def test_transformers_equal_the_graph_for_others(picture, quantized):
    model = transformer.random_model(quantize_attention=quantized)
    expected = upscaled(onnx_model.build(model), picture[None])
    for tail in ("layers", "collapsed"):
        got = upscaled(onnx_model.build_integer(model, tail=tail), picture[None])
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_codes_with_a_collapsed_tail_equal_the_reference(picture, bits):
    model = small_model(bits_w=bits, bits_a=bits)
    expected = {}

    def observe(step, value):
        if isinstance(step.op, Quantize) and step.op.limits[1] <= 255:
            expected[step.op.name] = value
        elif isinstance(step.op, FoldedConv) and step.op.codes_out and step.op.codes_out[1] <= 255:
            expected[step.op.codes_name] = value

    picture_of_reference = reference.run_folded(fold(model), picture, observe)
    proto = onnx_model.build_integer(model, tail="collapsed")
    parts = {name: [] for name in expected}
    for node in proto.graph.node:  # NAME, or NAME.0, NAME.1, ...
        name = re.sub(r"\.[0-7]$", "", node.output[0])
        if name in parts:
            parts[name].append(node.output[0])
    names = [part for outputs in parts.values() for part in outputs]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    got, *values = session(proto).run(None, {INPUT: picture[None]})
    values = dict(zip(names, values, strict=True))
    assert len(parts) == 8
    for name, value in expected.items():
        pixels = [values[part].reshape(-1, value.shape[1]) for part in parts[name]]
        codes = np.concatenate(pixels).T.reshape(value.shape).astype(int)  # stored from 0 on
        assert len(np.unique(codes)) > 2
        np.testing.assert_array_equal(codes + min(value.min().item(), 0), value.numpy(), err_msg=name)
    assert np.abs(got[0].astype(int) - picture_of_reference).max() <= 1


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_collapsed_tail_gives_nearly_the_picture(picture, scale):
    model = small_model(scale=scale)
    proto = onnx_model.build_integer(model, tail="collapsed")
    for part in (picture[:3, :3], picture[:3], picture):
        got = upscaled(proto, np.stack([part, part[::-1]]))
        for one, image in zip(got, (part, part[::-1]), strict=True):
            difference = np.abs(one.astype(int) - reference.run(model, image))
            assert difference.max() <= 1
            assert (difference == 0).mean() > 0.9


def test_an_upsampler_that_reads_few_bits_is_not_collapsed(picture):
    net = Net(bits=4)
    x = net.build.add("leaky_relu", net.layer(net.start, CHANNELS, CHANNELS), slope=0.25)
    x = net.build.add("pixel_shuffle", net.layer(x, CHANNELS, 4 * CHANNELS), factor=2)
    model = net.finish(x, CHANNELS, factor=2)
    got = upscaled(onnx_model.build_integer(model, tail="collapsed"), picture[None])[0]
    np.testing.assert_array_equal(got, reference.run(model, picture))


def test_convolutions_run_as_integers(tmp_path):
    proto = onnx_model.build_integer(small_model(num_feat=16), tail="collapsed")
    session(proto, str(tmp_path / "optimized.onnx"))
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["QLinearConv"] == 4
    assert kinds["MatMulIntegerToFloat"] == 4 * 8  # in strips
    floats = {name for node in nodes if node.op_type == "Conv" for name in node.output}
    assert not any("body" in name and "after" not in name for name in floats)
    # The first convolution, the one behind the body, the collapsed tail's nine kernels.
    assert kinds["Conv"] == 1 + 1 + 9


@pytest.mark.parametrize(
    ("name", "lower"), [case for case in SHIPPED_DEPTHS if case.values[0].startswith("quantsr_c")]
)
def test_convolutions_of_shipped_networks_run_as_integers(name, lower, tmp_path):
    """In ONNX Runtime's own, optimized graph: of each block one that gives codes and one that gives
    floats."""
    model = packing.load(find_packed(name))
    for depth in depths_of(model, lower):
        for tail in ("layers", "collapsed"):
            session(onnx_model.build_integer(model, depth, tail=tail), str(tmp_path / "optimized.onnx"))
            nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
            integer = {
                conv.name for conv in fold(model, depth).convs() if conv.integer and "body." in conv.name
            }
            assert len(integer) == 2 * depth
            # NAME.out, and in strips NAME.out.0, NAME.out.1, ...
            names = {kind: set() for kind in ("QLinearConv", "MatMulIntegerToFloat", "Conv", "FusedConv")}
            for node in nodes:
                names.get(node.op_type, set()).add(
                    re.sub(r"\.out(\.planes)?(\.[0-7])?(_token_\d+)?$", "", node.name)
                )
            assert integer <= names["QLinearConv"] | names["MatMulIntegerToFloat"]
            assert not integer & (names["Conv"] | names["FusedConv"])


def test_linear_layers_run_as_integers():
    proto = onnx_model.build_integer(transformer.random_model())
    layers = {node.name for node in proto.graph.node if node.op_type == "MatMulIntegerToFloat"}
    wanted = {
        conv.name for conv in fold(transformer.random_model()).convs() if isinstance(conv, FoldedLinear)
    }
    assert layers == {f"{name}.out" for name in wanted}


def random_conv(seed: int, **options) -> FoldedConv:
    rng = np.random.default_rng(seed)
    conv = FoldedConv(
        name=f"conv{seed}",
        weight=rng.integers(-8, 8, (6, 5, 3, 3)).astype(np.int8),
        multiplier=rng.uniform(0.001, 0.05, 6).astype(np.float32),
        bias=rng.normal(0, 4, 6).astype(np.float32),
        codes_in=(-8, 7),
    )
    return replace(conv, **options)


@pytest.mark.parametrize("codes_out", [(0, 15), (-8, 7), (-5, 9), (0, 63), (-128, 127)])
@pytest.mark.parametrize("relu", [False, True])
def test_integer_biases_leave_every_code(codes_out, relu):
    found = 0
    for seed in range(12):
        relu_at = np.linspace(-3, 5, 6).astype(np.float32) if relu else None
        conv = random_conv(seed, codes_out=codes_out, codes_name="codes", relu_at=relu_at)
        weight, integers = conv.weight.astype(int), integer_conv(conv)
        if integers is None:  # no such bias: there may be none with many codes
            continue
        found += 1
        low, high = (np.where(weight * sign > 0, -8, 7) * weight for sign in (1, -1))
        low, high = (products.reshape(6, -1).sum(1, keepdims=True) for products in (low, high))
        sums = np.clip(np.arange(-conv.sum_bound, conv.sum_bound + 1), low, high)  # (6, n)
        factor = np.abs(integers.weight.astype(int)).max((1, 2, 3)) // np.abs(weight).max((1, 2, 3))
        np.testing.assert_array_equal(integers.weight, weight * factor.reshape(-1, 1, 1, 1))
        y = (sums * factor[:, None] + integers.bias[:, None]).astype(np.float32) * integers.scale[:, None]
        codes = np.clip(np.rint(y), *codes_out)
        if conv.low is not None:
            codes = np.maximum(codes, conv.low[:, None])
        np.testing.assert_array_equal(codes, codes_of_sums(conv, sums))
    assert found > 0 or codes_out[1] - codes_out[0] > 100


def test_products_that_could_saturate_have_no_integer_form():
    assert integer_conv(random_conv(0, codes_out=(0, 15))) is not None
    assert integer_conv(random_conv(0, codes_out=(0, 15), codes_in=(0, 255))) is not None
    weight = np.full((6, 5, 3, 3), 65, np.int8)
    assert integer_conv(random_conv(0, codes_out=(0, 15), codes_in=(0, 255), weight=weight)) is None
    assert integer_conv(random_conv(0, codes_out=(0, 15), codes_in=(0, 2**16 - 1))) is None
    assert integer_conv(random_conv(0, codes_out=(-(2**15), 2**15 - 1))) is None
    assert integer_conv(random_conv(0)) is None


@pytest.mark.parametrize("strips", [1, 8])
def test_other_operations_go_with_strips(picture, strips):
    channels = 5
    zeros = np.zeros(channels, np.float32)
    quantize = Quantize("codes", (-8, 7), np.float32([0.1]), zeros + np.float32(0.03))
    each = Quantize("each", (-8, 7), np.linspace(0.05, 0.1, channels).astype(np.float32), zeros)
    conv = replace(
        random_conv(1), weight=random_conv(1).weight[:channels], multiplier=zeros + 1 / 512, bias=zeros
    )
    rng = np.random.default_rng(0)
    first = FoldedConv(
        "first", rng.normal(0, 1, (channels, 3, 3, 3)).astype(np.float32), zeros + 1, zeros, None
    )
    linear = replace(conv, name="linear", weight=conv.weight[:, :, 1, 1])
    last = replace(conv, name="last", weight=rng.integers(-8, 8, (12, channels, 3, 3)).astype(np.int8))
    last = replace(last, multiplier=np.full(12, 1.5, np.float32), bias=np.full(12, 128, np.float32))
    steps = (
        Step(Normalize(np.float32(1), np.float32([0.5, 0.4, 0.5])), (0,), 1),
        Step(first, (1,), 2),
        Step(quantize, (2,), 3),
        Step(conv, (3,), 4),
        Step(Activation("leaky_relu", np.float32(0.1)), (4,), 5),
        Step(Binary("add"), (5, 2), 6),
        Step(Mean(), (6,), 7),
        Step(Activation("sigmoid"), (7,), 8),
        Step(Binary("multiply"), (6, 8), 9),
        Step(Concat(), (9, 4), 10),
        Step(Slice(3, 3 + channels), (10,), 11),
        Step(Activation("prelu", np.linspace(0, 0.5, channels).astype(np.float32)), (11,), 12),
        Step(each, (12,), 13),
        Step(FoldedLinear(**vars(linear)), (13,), 14),
        Step(UpsampleNearest(2), (14,), 15),
        Step(replace(quantize, name="large"), (15,), 16),
        Step(last, (16,), 17),
        Step(Pixels(), (17,), 18),
        Step(PixelShuffle(2), (18,), 19),
    )
    program = FoldedProgram(steps, 4)
    graph = Graph(channels_last=True)
    IntegerOps(graph, program, strips=strips, tail=None).run()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph.finish(4), opset_imports=opsets, ir_version=8)
    got = upscaled(proto, picture[None])[0].astype(int)
    difference = np.abs(got - reference.run_folded(program, picture))
    # Float convolutions and means add in another order, so codes next to a tie may differ.
    assert (difference == 0).mean() > 0.99
    assert len(np.unique(got)) > 50
