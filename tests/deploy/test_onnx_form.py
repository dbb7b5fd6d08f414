"""The form of ONNX graphs: what onnx's checker and shape inference say of every one, and the graphs
with explicit Q/DQ."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from quantsr import cli
from quantsr.deploy.engines import onnx_model, reference
from quantsr.deploy.engines.onnx_graph import INPUT
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError
from quantsr.trained_files.names import find_packed, shipped
from tests.deploy import quantsr_t
from tests.deploy.conftest import small_model
from tests.deploy.test_operations import EXACT, LAYERS, Net, nothing_between

SHIPPED_C = [name for name in shipped() if name.startswith("quantsr_c")]
SHIPPED_DEPTHS = [
    pytest.param(
        name, lower, marks=[pytest.mark.integration] if lower and not name.endswith("x4_w4a4") else []
    )
    for name in shipped()
    for lower in (False, True)
]
"""Networks, and whether at their lower depths: graphs of all depths are alike, and the unit tests
have those of one network of each kind."""
FORMS = {
    "file": onnx_model.build,
    "int4": lambda model, depth: onnx_model.build(model, depth, int4=True),
    "integer": onnx_model.build_integer,
    "integer, collapsed": lambda model, depth: onnx_model.build_integer(model, depth, tail="collapsed"),
    "qdq": onnx_model.build_qdq,
}


def depths_of(model: PackedModel, lower: bool) -> tuple[int, ...]:
    return model.header.depths[1:] if lower else model.header.depths[:1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "lower"), SHIPPED_DEPTHS)
def test_checker_and_shape_inference_accept_every_form(name, lower, form):
    if name not in SHIPPED_C and form == "qdq":
        pytest.skip("transformers have no such form")
    model = packing.load(find_packed(name))
    for depth in depths_of(model, lower):
        proto = FORMS[form](model, depth)
        onnx.checker.check_model(proto, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        (output,) = inferred.graph.output
        assert output.type.tensor_type.elem_type == TensorProto.UINT8
        dims = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
        scale = model.header.scale
        assert dims == ["n", f"height*{scale}", f"width*{scale}", 3]
        types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
        ours = {"com.microsoft"} & {node.domain for node in proto.graph.node}
        if not ours:  # what inference knows the operators of
            assert (
                not {out for node in proto.graph.node for out in node.output} - types.keys() - {output.name}
            )


def values_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("name", SHIPPED_C)
def test_explicit_quantization_is_symmetric_int8(name):
    """What TensorRT takes: int8 with zero point 0, of which nothing but a DequantizeLinear reads,
    and weights as int8 behind a scale for every output."""
    model = packing.load(find_packed(name))
    depth = model.header.depths[0]
    proto = onnx_model.build_qdq(model, depth)
    constants = values_of(proto)
    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for value in node.input:
            readers.setdefault(value, set()).add(node.op_type)
    weights = 0
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        if node.op_type == "QuantizeLinear":
            assert readers[node.output[0]] == {"DequantizeLinear"}
        elif node.input[0] in constants:
            weights += 1
            assert constants[node.input[0]].dtype == np.int8
            assert constants[node.input[1]].shape == constants[node.input[0]].shape[:1]
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert (weights, kinds["QuantizeLinear"]) == (2 * depth, 2 * depth)
    assert all(len(node.input) == 3 for node in proto.graph.node if node.op_type == "Conv")


def by_onnxruntime(
    proto: onnx.ModelProto, picture: np.ndarray, *, float_biases: bool = True, optimized: str = ""
) -> np.ndarray:
    """Without `float_biases` ONNX Runtime rounds biases to units of the sums, as its integer
    kernels take them."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = optimized
    session = runtime.InferenceSession(
        proto.SerializeToString(),
        options,
        ["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"] if float_biases else [],
    )
    return session.run(None, {INPUT: picture[None]})[0][0]


@pytest.mark.parametrize("make", [*LAYERS, *EXACT], ids=lambda make: make.__name__)
def test_explicit_quantization_computes_what_the_reference_does(make, picture):
    """But for codes next to a tie: there are many of these in networks of powers of two."""
    for bits in (3, 7, 8):
        for codes in ("signed", "unsigned"):
            model = make(Net(bits=bits, range=codes, seed=bits))
            got = by_onnxruntime(onnx_model.build_qdq(model), picture).astype(int)
            difference = np.abs(got - reference.run(model, picture))
            assert (difference <= 1).mean() >= 0.97, (bits, codes)


def one_block(bits: int) -> PackedModel:
    return small_model(bits_w=bits, bits_a=bits, num_block=1)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_explicit_quantization_of_a_block(bits, picture):
    got = by_onnxruntime(onnx_model.build_qdq(one_block(bits)), picture).astype(int)
    difference = np.abs(got - reference.run(one_block(bits), picture))
    assert (difference <= 1).mean() >= 0.999


def test_onnxruntime_makes_integer_kernels_of_explicit_quantization(tmp_path, picture):
    """Where codes are all of int8, and no Clip stands between Conv and QuantizeLinear: read from
    its optimized graph."""
    model = nothing_between(Net(bits=8, range="signed"))
    path = tmp_path / "optimized.onnx"
    by_onnxruntime(onnx_model.build_qdq(model), picture, float_biases=False, optimized=str(path))
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["QLinearConv"] == 1  # the other gives floats


def test_transformers_are_refused_by_name(tmp_path, capsys):
    with pytest.raises(InputError, match="--qdq: "):
        onnx_model.build_qdq(quantsr_t.small_model())


def test_qdq_goes_with_onnx_files_only(tmp_path, capsys):
    packing.save(small_model(), tmp_path / "net.safetensors")
    words = ["export", "-m", str(tmp_path / "net.safetensors"), "--qdq", "--no-parity", "-o"]
    assert cli.main([*words, str(tmp_path / "net.xml")]) == 2
    assert cli.main([*words, str(tmp_path / "net.onnx"), "--int4"]) == 2
    assert capsys.readouterr().err.count("--qdq: goes with ONNX files") == 2
    assert cli.main([*words, str(tmp_path / "net.onnx")]) == 0
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
