"""Bit for bit: the codes of the training network's evaluation, of the integer reference and of the engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.deploy import convert, integer, openvino_graph, openvino_model, openvino_ops
from quantsr.deploy.engines import select
from quantsr.deploy.fold import fold
from quantsr.deploy.model import PackedModel
from quantsr.engine.evaluate import evaluating, network_upscaler
from quantsr.quant import QuantConv2d, calibrate

BITS = (2, 3, 4, 6)


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


def codes_of_training(
    net: QuantSR_C, image: np.ndarray, depth: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What every quantized conv of the network's evaluation reads, as codes (C, H, W), and the picture."""
    seen = {}

    def record(name: str):
        def hook(module, inputs):
            spec = module.input_quantizer.spec()
            u = (inputs[0] + spec.tau.view(1, -1, 1, 1)) / spec.step
            seen[name] = u.clamp(spec.range.qmin, spec.range.qmax).round()[0].numpy()

        return hook

    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, QuantConv2d)]
    handles = [module.register_forward_pre_hook(record(name)) for name, module in layers]
    with evaluating(net):
        (picture,) = network_upscaler(net, (depth,), scale=net.upscale)(image)
    for handle in handles:
        handle.remove()
    return seen, picture


def codes_of_reference(model: PackedModel, image: np.ndarray, depth: int, monkeypatch):
    """The same of the integer reference."""
    seen = {}
    conv = integer.conv

    def record(layer, x):
        if layer.codes_in is not None:
            seen[layer.name] = integer.codes(layer, x)[0].numpy()
        return conv(layer, x)

    with monkeypatch.context() as patch:
        patch.setattr(integer, "conv", record)
        return seen, integer.run_folded(fold(model, depth), image)


def assert_equal_codes(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(got) == set(expected)
    for name, codes in expected.items():
        assert len(np.unique(codes)) > 2
        np.testing.assert_array_equal(got[name], codes, err_msg=name)


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
    ],
    ids=str,
)
def test_the_integer_reference_has_the_codes_of_trainings_evaluation(picture, options, monkeypatch):
    net = network(**options)
    model = convert.convert(net, head_tail_bits=32)
    for depth in model.header.depths:
        expected, wanted = codes_of_training(net, picture, depth)
        got, upscaled = codes_of_reference(model, picture, depth, monkeypatch)
        assert_equal_codes(got, expected)
        assert_same_picture(upscaled, wanted)


@pytest.mark.parametrize("bits", BITS)
def test_openvino_has_the_codes_of_the_reference(picture, bits, monkeypatch):
    pytest.importorskip("openvino")
    from quantsr.deploy.openvino_core import core

    model = convert.convert(network(nbits_w=bits, nbits_a=bits), head_tail_bits=32)
    for depth in model.header.depths:
        expected, wanted = codes_of_reference(model, picture, depth, monkeypatch)
        height, width = picture.shape[:2]
        graph = openvino_model.build(model, depth, height=height, width=width)
        graph.add_outputs([(f"{name}.input", 0) for name in expected])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        result = core().compile_model(graph, "CPU", settings)([picture[None]])
        got = {name: np.array(result[index][0]) for index, name in enumerate(expected, start=1)}
        assert_equal_codes(got, expected)
        assert_same_picture(result[0][0], wanted)


def test_openvino_rounds_the_sums_of_the_first_convolution_once(picture):
    """A last bit that differs is a code that flips sooner or later; in one float32 convolution most of them do."""
    ov = pytest.importorskip("openvino")
    from quantsr.deploy.openvino_core import core

    net = fold(convert.convert(network(num_feat=32), head_tail_bits=32))
    shape = [1, *picture.shape]
    image = ov.opset13.parameter(shape, np.float32, name="image")
    pixels = ov.opset13.transpose(image, openvino_ops.ints(0, 3, 1, 2))
    expected = integer.head(net, picture).numpy()
    wrong = {}
    for exact in (True, False):
        graph = ov.Model(
            [ov.opset13.result(openvino_graph._head(pixels, net, round_input=True, exact=exact))], [image], ""
        )
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        (got,) = core().compile_model(graph, "CPU", settings)([picture[None].astype(np.float32)]).values()
        wrong[exact] = (got != expected).mean()
    assert wrong[True] < 5e-4
    assert wrong[False] > 0.1


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_every_engine_gives_the_picture_of_training(picture, engine):
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
        close = near.view(np.int32)[:, None] + np.arange(-100, 101, dtype=np.int32)  # next to every edge
        values = close.view(np.float32)
        product = values
        for factor in factors:
            product = product * factor
        wrong.append(int((np.rint(product) != np.rint(values / step)).sum()))
    assert max(wrong) <= 2
    assert np.mean(np.array(wrong) == 0) > 0.8
