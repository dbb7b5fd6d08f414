"""Graphs of QuantSR-T against the integer reference: bits x protocol x engine, any size, and that
products run as integers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from quantsr.deploy.engines import onnx_model
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.folded import Attention, FoldedConv, Norm, Requantize
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out
from tests.deploy.codes import with_zero_points
from tests.deploy.quantsr_t import PROTOCOLS, small_model, with_eight_bit_inputs
from tests.deploy.test_onnx_graph import by_onnxruntime, by_openvino

EVERYTHING = PROTOCOLS["QuantSR+"]


def by_built_openvino(model: PackedModel, pictures: np.ndarray, **options) -> np.ndarray:
    """The graph that the upscaler builds, not the imported ONNX one."""
    pytest.importorskip("openvino")
    from quantsr.deploy.engines import openvino_model, openvino_ops
    from quantsr.deploy.engines.openvino_core import core

    batch, height, width, _ = pictures.shape
    depth, settings = options.pop("depth", None), options.pop("settings", {})
    options.setdefault("saturates", openvino_ops.integer_sums_saturate())
    graph = openvino_model.build(model, depth, height=height, width=width, batch=batch, **options)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, **settings}
    return np.array(core().compile_model(graph, "CPU", settings)(pictures)[0])


def by_imported_openvino(model: PackedModel, pictures: np.ndarray) -> np.ndarray:
    pytest.importorskip("openvino")

    from quantsr.deploy.engines.openvino_ops import integer_sums_saturate

    if integer_sums_saturate() and overflowing(model):
        pytest.skip("sums of this processor's integer convs saturate, which an ONNX graph cannot prevent")
    return by_openvino(onnx_model.build(model), pictures)


def overflowing(model: PackedModel) -> set[str]:
    """Names of the codes of which two products, added in 16 bits, could exceed them."""
    from quantsr.deploy.engines.openvino_graph import OpenVinoOps

    program = lay_out(fold(model, wide_inputs=False))
    ops = OpenVinoOps(program, (1, 8, 8), tail="collapsed", float_io=False, saturates=True)
    limits = {}
    for step in program.steps:
        op = step.op
        if isinstance(op, FoldedConv) and op.codes_out is not None:
            limits[step.output] = op.codes_name, op.codes_out
        elif isinstance(op, Norm | Requantize) and op.limits is not None:
            limits[step.output] = op.name, op.limits
        elif isinstance(op, Attention) and isinstance(op.mix, Requantize):
            limits[step.output] = op.mix.name, op.mix.limits
    return {name for value, (name, codes) in limits.items() if ops.overflows(codes, value)}


def has_avx512() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx512" in cpu.read_text()


RUNS = {
    "onnxruntime": lambda model, pictures: by_onnxruntime(onnx_model.build(model), pictures),
    "openvino from onnx": by_imported_openvino,
    "openvino": by_built_openvino,
}


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """LayerNorm, softmax and GELU are summed in another order, so a code next to a tie may flip;
    later layers see that."""
    difference = np.abs(got.astype(int) - expected)
    assert (difference <= 1).mean() >= 0.999, difference.max()
    assert difference.max() <= 3


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_give_the_references_picture(picture, bits, run):
    model = with_zero_points(small_model(bits_w=bits, bits_a=bits, num_block=1, **EVERYTHING))
    expected = integer_reference.run(model, picture)
    assert expected.std() > 20
    assert_close(RUNS[run](model, picture[None])[0], expected)


@pytest.mark.parametrize(
    ("bits", "options", "run"),
    [  # as unit tests every engine with all bits, and by turns with either protocol
        pytest.param(
            bits,
            options,
            run,
            id=f"{bits}-{name}-{run}",
            marks=[pytest.mark.integration] if (bits + i + j) % 2 else [],
        )
        for i, run in enumerate(RUNS)
        for j, (name, options) in enumerate({"QuantSR": {}, "QuantSR+": EVERYTHING}.items())
        for bits in range(2, 9)
    ],
)
def test_engines_give_the_references_picture(picture, bits, options, run):
    # One RSTB: deep random networks, unlike trained ones, amplify a flipped code on its way to the
    # output.
    model = small_model(bits_w=bits, bits_a=bits, num_block=1, **options)
    expected = integer_reference.run(model, picture)
    assert expected.std() > 20
    assert_close(RUNS[run](model, picture[None])[0], expected)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "options",
    [
        PROTOCOLS["2DQuant"],
        {"head_tail_bits": 16},
        {"head_tail_bits": 32},
        {"first_bits": 8},
        {"bits_w": 32, "bits_a": 32},
        {"dqa_unit": "layer"},
        {"upsampler": "pixelshuffle", "resi_connection": "3conv", "scale": 4},
        {"scale": 3, "window_size": 5},
    ],
    ids=str,
)
def test_every_option(picture, options, run):
    model = small_model(num_block=1, **options)
    assert_close(RUNS[run](model, picture[None])[0], integer_reference.run(model, picture))


@pytest.mark.parametrize("run", RUNS)
def test_any_batch_and_size(picture, run):
    model = small_model(num_block=1)
    for pictures in (
        picture[None, :1, :1],
        picture[None, :3, :17],
        np.stack([picture[:9, :5], picture[3:12, 4:9]]),
    ):
        got = RUNS[run](model, pictures)
        for one, image in zip(got, pictures, strict=True):  # too few values for a share of 0.1 %
            difference = np.abs(one.astype(int) - integer_reference.run(model, image))
            assert difference.max() <= 3
            assert (difference <= 1).mean() >= 0.99


def test_every_depth(picture):
    model = small_model(num_block=2, dqa_unit="layer")
    for depth in model.header.depths:
        expected = integer_reference.run(model, picture, depth)
        assert_close(by_onnxruntime(onnx_model.build(model, depth), picture[None])[0], expected)
        # OpenVINO leaves 16-bit inputs in float, and the next RSTB of a random network amplifies
        # that.
        unrounded = integer_reference.run(model.with_wide_inputs_in_float(), picture, depth)
        assert_close(by_built_openvino(model, picture[None], depth=depth)[0], unrounded)


@pytest.mark.parametrize("run", RUNS)
def test_files_from_before_16_bit_inputs(picture, run, tmp_path):
    """QuantSR-T had 8-bit inputs of its float convs."""
    packing.save(with_eight_bit_inputs(small_model(num_block=1)), tmp_path / "old.safetensors")
    model = packing.load(tmp_path / "old.safetensors")
    assert model.layers["conv_after_body"].bits_a == 8
    assert model.with_wide_inputs_in_float().layers["conv_after_body"].integer
    assert_close(RUNS[run](model, picture[None])[0], integer_reference.run(model, picture))


@pytest.mark.parametrize("bits", [4, 8])
def test_int4_weights(picture, bits):
    model = small_model(bits_w=bits, num_block=1)
    packed = onnx_model.build(model, int4=True)
    types = Counter(tensor.data_type for tensor in packed.graph.initializer)
    # q, k and v have a tensor each.
    assert types[onnx.TensorProto.INT4] == (2 * 6 if bits == 4 else 0)  # 8-bit convs stay int8
    assert_close(by_onnxruntime(packed, picture[None])[0], integer_reference.run(model, picture))


def test_the_graph_is_of_integers():
    model = small_model(**EVERYTHING)
    graph = onnx_model.build(model).graph
    kinds = Counter(node.op_type for node in graph.node)
    layers = 2 * 2
    assert kinds["MatMul"] == layers * (3 + 1 + 2 + 2)
    assert kinds["Conv"] == 2 + 2 + 2 + 1  # conv_first is float, in three parts
    # All operands of products but the inputs and weights of conv_first, and two inputs of 16 bits,
    # whose codes are float32 already.
    assert kinds["DequantizeLinear"] == 2 * (kinds["MatMul"] + kinds["Conv"] - 3) - 2
    weights = [t for t in graph.initializer if t.name.endswith(".weight") and "norm" not in t.name]
    assert Counter(t.data_type for t in weights) == {onnx.TensorProto.INT8: layers * 6 + 4}
    # Masks are computed once, not per layer.
    assert kinds["Where"] == 1
    assert [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim[:3]] == ["n", "height", "width"]


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_openvino_runs_linear_layers_as_integers(bits, picture):
    pytest.importorskip("openvino")
    from quantsr.deploy.engines import openvino_model
    from quantsr.deploy.engines.openvino_core import core

    model = small_model(embed_dim=24, num_block=1, bits_w=bits, bits_a=bits)
    graph = openvino_model.build(model, height=16, width=16)
    runtime = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    kinds = Counter()
    for node in runtime.get_ordered_ops():
        info = {key: node.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")}
        kinds[
            info["layerType"].removesuffix("QuantizedLegacy"), info["runtimePrecision"] in ("i8", "u8")
        ] += 1
    assert (kinds["FullyConnected", True], kinds["FullyConnected", False]) == (2 * 6, 0)
    # conv_first has three
    assert (kinds["Convolution", True], kinds["Convolution", False]) == (0, 6)


@pytest.mark.parametrize(
    "options", [{"bits_w": 8, "bits_a": 8}, {"bits_w": 8, "bits_a": 8, **EVERYTHING}], ids=str
)
def test_saturating_processors_get_the_same_picture(picture, options):
    pytest.importorskip("openvino")

    model = small_model(num_block=1, **options)
    layers = dict(model.layers)
    for name, layer in model.layers.items():
        if layer.kind == "linear":  # two products of the largest codes need 17 bits
            weight = layer.weight.copy()
            weight[:, :2] = 127
            layers[name] = replace(layer, weight=weight, weight_step=layer.weight_step / 4)
    model = replace(model, layers=layers)
    assert len(overflowing(model)) >= 2 * 4
    # Weights of 4 bits cannot overflow 16; 8-bit convs outside the blocks can.
    four = overflowing(with_eight_bit_inputs(small_model(num_block=1)))
    assert four == {"layers.0.conv.input", "conv_after_body.input", "upsample.0.input"}
    assert_close(
        by_built_openvino(model, picture[None], saturates=True)[0], integer_reference.run(model, picture)
    )


def test_openvino_needs_no_fused_attention(picture):
    """Where the plugin does not fuse attention, it must know every node by itself."""
    model = small_model(num_block=1, **EVERYTHING)
    got = by_built_openvino(model, picture[None], settings={"SNIPPETS_MODE": "DISABLE"})[0]
    assert_close(got, integer_reference.run(model, picture))


@pytest.mark.integration
@pytest.mark.parametrize(
    "isa",
    [
        "AVX512_CORE",
        pytest.param(
            "AVX2",
            marks=pytest.mark.xfail(
                has_avx512(),
                raises=subprocess.CalledProcessError,
                reason="OpenVINO 2026.4 crashed where only oneDNN is restricted, before taus left the FakeQuantize; not tried since",
            ),
        ),
        pytest.param(
            "SSE41",
            marks=pytest.mark.xfail(
                raises=subprocess.CalledProcessError,
                reason="OpenVINO 2026.4 cannot compile MVN (LayerNorm) without AVX2",
            ),
        ),
    ],
)
def test_same_picture_without_vnni(isa, picture, tmp_path):
    pytest.importorskip("openvino")
    model = small_model(num_block=1, bits_w=8, bits_a=8, **EVERYTHING)
    packing.save(model, tmp_path / "n.safetensors")
    np.save(tmp_path / "in.npy", picture)
    code = (
        "import numpy as np; from quantsr.deploy.packed import packing; from quantsr.deploy.engines import select\n"
        f"e = select.create('openvino', packing.load({str(tmp_path / 'n.safetensors')!r}), threads=1, cache=False)\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, e.run(np.load({str(tmp_path / 'in.npy')!r})[None]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa})
    assert_close(np.load(tmp_path / "out.npy")[0], integer_reference.run(model, picture))
