"""Bit for bit: the codes of the training network's evaluation, of the integer reference and of the
engines."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.deploy import convert
from quantsr.deploy.engines import openvino_ops, select
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines import torch as torch_engine
from quantsr.deploy.lower import lower
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.restrict import restrict
from quantsr.deploy.passes.fold import fold
from quantsr.quant import calibrate
from tests.deploy.codes import (
    assert_equal_codes,
    codes_of_module,
    codes_of_native,
    codes_of_onnx,
    codes_of_openvino,
    codes_of_reference,
    codes_of_training,
)
from tests.deploy.native import needs_kernels

BITS = (2, 3, 4, 6)
DEPTHS = (4, 2, 1)
# Engines are built anew for each depth, which takes most of a test's time: the unit tests have all
# bits at full depth, and all depths at 4 bits.
BITS_AND_DEPTHS = [
    pytest.param(bits, depth, marks=[pytest.mark.integration] if bits != 4 and depth != 4 else [])
    for bits in BITS
    for depth in DEPTHS
]


def network(**options) -> QuantSR_C:
    """Calibrated, 16 channels, with taus, biases and shortcuts as odd as training leaves them."""
    torch.manual_seed(3)
    net = QuantSR_C(**{"num_feat": 16, "num_block": 4, "upscale": 2, **options})
    calibrate(net, [torch.rand(2, 3, 16, 16)])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith((".tau", ".bias")):
                parameter.add_(torch.randn_like(parameter) * 2 * net.img_range / 255)
            if name.endswith(".shortcut"):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    net.rank_blocks()
    return net.eval()


def assert_same_picture(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for values half way between two, where the float tail's last bit decides."""
    difference = np.abs(got.astype(int) - expected)
    assert expected.std() > 5
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize(
    "options",
    [
        *({"nbits_w": bits, "nbits_a": bits} for bits in BITS),
        {"weight_granularity": "channel"},
        {"quantizer": "LSQ"},
        {"res_scale": 0.5},
        {"img_range": 1.0},
        {"depth_rule": "released"},
        {"shortcuts": "conv", "nbits_w": 2, "nbits_a": 2},
        {"shortcuts": "conv", "res_scale": 0.5},
    ],
    ids=str,
)
def test_the_integer_reference_has_the_codes_of_trainings_evaluation(picture, options):
    net = network(**options)
    model = convert.convert(net, head_tail_bits=32)
    for depth in model.header.depths:
        expected, wanted = codes_of_training(net, picture, depth)
        got, upscaled = codes_of_reference(model, picture, depth)
        assert_equal_codes(got, expected)
        assert_same_picture(upscaled, wanted)


@pytest.fixture(scope="module")
def referenced(picture):
    """A function that gives a network, and the reference's codes and picture of it: made once for
    all engines."""

    @cache
    def make(bits: int, shortcuts: str, depth: int):
        # Weights of at most 4 bits, whose transforms are bytes in the native engine.
        net = network(nbits_w=min(bits, 4), nbits_a=bits, shortcuts=shortcuts)
        model = convert.convert(net, head_tail_bits=32)
        return model, *codes_of_reference(model, picture, depth)

    return make


@pytest.mark.parametrize(("bits", "depth"), BITS_AND_DEPTHS)
@pytest.mark.parametrize("shortcuts", ["block", "conv"])
@pytest.mark.parametrize(
    ("engine", "codes_of"),
    [
        ("openvino", codes_of_openvino),
        ("onnxruntime", codes_of_onnx),
        ("torch", codes_of_module),
        pytest.param("native", codes_of_native, marks=needs_kernels),
    ],
    ids=["openvino", "onnxruntime", "torch", "native"],
)
def test_every_engine_has_the_codes_of_the_reference(
    picture, referenced, engine, codes_of, bits, depth, shortcuts
):
    if engine in select.PACKAGES:
        pytest.importorskip(engine)
    model, expected, wanted = referenced(bits, shortcuts, depth)
    assert model.header.depths == DEPTHS
    got, upscaled = codes_of(model, picture, depth)
    assert_equal_codes(got, expected)
    assert_same_picture(upscaled, wanted)


@pytest.mark.parametrize("codes_of", [codes_of_openvino, codes_of_onnx])
def test_weights_of_6_bits_as_well(picture, codes_of):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    model = convert.convert(network(nbits_w=6, nbits_a=6), head_tail_bits=32)
    expected, _ = codes_of_reference(model, picture, 4)
    assert_equal_codes(codes_of(model, picture, 4)[0], expected)


def test_openvino_rounds_the_sums_of_the_first_convolution_once(picture):
    """A last bit that differs is a code that flips sooner or later; in one float32 convolution most
    of them do."""
    ov = pytest.importorskip("openvino")
    from quantsr.deploy.engines.openvino_core import core
    from quantsr.deploy.engines.openvino_first import first_conv

    first = fold(convert.convert(network(num_feat=32), head_tail_bits=32)).steps[0].op
    shape = [1, *picture.shape]
    image = ov.opset13.parameter(shape, np.float32, name="image")
    pixels = ov.opset13.transpose(image, openvino_ops.ints(0, 3, 1, 2))
    shaped = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    expected = integer_reference.ReferenceOps(picture.shape[:2])(first, shaped).numpy()
    wrong = {}
    for exact in (True, False):
        graph = ov.Model(
            [ov.opset13.result(first_conv(pixels, first, round_input=True, exact=exact))], [image], ""
        )
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        (got,) = core().compile_model(graph, "CPU", settings)([picture[None].astype(np.float32)]).values()
        wrong[exact] = (got != expected).mean()
    assert wrong[True] < 5e-4
    assert wrong[False] > 0.1


def test_torch_rounds_the_sums_of_the_first_convolution_once(picture):
    first = fold(convert.convert(network(num_feat=32), head_tail_bits=32)).steps[0].op
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    expected = integer_reference.ReferenceOps(picture.shape[:2])(first, pixels)
    ops = torch_engine.TorchOps(picture.shape[:2], torch.device("cpu"), {}, float_io=False)
    assert torch.equal(ops(first, pixels), expected)
    assert not torch.equal(ops.conv(first.head, pixels), expected)  # in float32


def test_a_file_with_shortcuts_around_convolutions_is_the_network_also_cut_to_a_depth(picture, tmp_path):
    net = network(shortcuts="conv", nbits_w=2, nbits_a=2)
    path = tmp_path / "net.safetensors"
    packing.save(convert.convert(net, head_tail_bits=32), path)
    model = packing.load(path)
    assert model.written == lower(net)
    for depth in model.header.depths:
        expected, wanted = codes_of_training(net, picture, depth)
        got, upscaled = codes_of_reference(model, picture, depth)
        assert_equal_codes(got, expected)
        packing.save(restrict(model, depth), path)
        assert np.array_equal(codes_of_reference(packing.load(path), picture, depth)[1], upscaled)
        assert_same_picture(upscaled, wanted)


@pytest.mark.parametrize(
    "engine", ["openvino", "onnxruntime", "torch", pytest.param("native", marks=needs_kernels)]
)
def test_every_engine_gives_the_picture_of_training(picture, engine):
    if engine in select.PACKAGES:
        pytest.importorskip(engine)
    net = network()
    model = convert.convert(net, head_tail_bits=32)
    for depth in model.header.depths:
        _, wanted = codes_of_training(net, picture, depth)
        (got,) = select.create(engine, model, depth, threads=1).run(picture[None])
        assert_same_picture(got, wanted)


def test_evaluation_does_not_depend_on_the_layout_in_memory(picture):
    # Sums of other orders: every conv before the tail must give the same bits.
    net = network()
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        runs = [
            net._body(net._shallow(x.contiguous(memory_format=layout)), [frozenset(range(4))])[0].features
            for layout in (torch.contiguous_format, torch.channels_last)
        ]
        alone = net._body(net._shallow(x.repeat(3, 1, 1, 1)), [frozenset(range(4))])[0].features
    assert torch.equal(*runs)
    assert torch.equal(alone[2], runs[0][0])


def test_factors_instead_of_a_division_give_its_codes():
    rng = np.random.default_rng(0)
    wrong = []
    for step in rng.uniform(0.01, 30, 100).astype(np.float32):
        factors = openvino_ops.reciprocal(step.reshape(1), (-8, 7))
        assert float(np.prod(factors)) == pytest.approx(1 / step, rel=1e-6)
        near = ((np.arange(-8, 7) + 0.5) * step).astype(np.float32)
        # next to every edge
        close = near.view(np.int32)[:, None] + np.arange(-100, 101, dtype=np.int32)
        values = close.view(np.float32)
        product = values
        for factor in factors:
            product = product * factor
        wrong.append(int((np.rint(product) != np.rint(values / step)).sum()))
    assert max(wrong) <= 2
    assert np.mean(np.array(wrong) == 0) > 0.8
