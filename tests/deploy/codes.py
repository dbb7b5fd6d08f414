"""What every engine's convolutions read, as codes less their zero point, by the names of the
layers: (C, H, W) each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.deploy.engines import onnx_graph, onnx_model, openvino_model
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.folded import FirstConv, FoldedConv
from quantsr.deploy.module import to_module
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out
from quantsr.engine.evaluate import evaluating, network_upscaler
from quantsr.quant import QuantConv2d


def codes_of_training(
    net: QuantSR_C, image: np.ndarray, depth: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What every quantized conv of the network's evaluation reads, as codes (C, H, W), and the
    picture."""
    seen = {}

    def record(name: str):
        def hook(module, inputs):
            spec = module.input_quantizer.spec()
            u = (inputs[0] + spec.tau.view(1, -1, 1, 1)) / spec.step
            seen[name] = u.clamp(*spec.centred.bounds).round()[0].numpy()

        return hook

    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, QuantConv2d)]
    handles = [module.register_forward_pre_hook(record(name)) for name, module in layers]
    with evaluating(net):
        (picture,) = network_upscaler(net, (depth,), scale=net.upscale)(image)
    for handle in handles:
        handle.remove()
    return seen, picture


def codes_of_reference(
    model: PackedModel, image: np.ndarray, depth: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of the integer reference."""
    seen = {}
    program = lay_out(fold(model, depth))
    values: dict[int, np.ndarray] = {}

    def record(step, result):
        values[step.output] = result[0].numpy()
        head = step.op.head if isinstance(step.op, FirstConv) else step.op
        if isinstance(head, FoldedConv) and head.codes_in is not None and step.inputs[0]:
            seen[head.name] = values[step.inputs[0]]

    return seen, integer_reference.run_folded(program, image, record)


def block_convs(model: PackedModel, depth: int) -> list[str]:
    """Names of the convolutions in the blocks of a QuantSR-C, in order."""
    return [conv.name for conv in fold(model, depth).convs() if conv.name.startswith("body.")]


def assert_equal_codes(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(got) == set(expected)
    for name, codes in expected.items():
        assert len(np.unique(codes)) > 2
        np.testing.assert_array_equal(got[name], codes, err_msg=name)


def with_zero_points(model: PackedModel) -> PackedModel:
    """The network with ranges of codes that are no two's complement: signed ones as with a zero
    point, unsigned ones without the highest code."""

    def limits(bits: int, signed: bool) -> tuple[int, int]:
        low = -(2**bits // 3)
        return (low, low + 2**bits - 1) if signed else (0, 2**bits - 2)

    layers = {
        name: replace(x, act_limits=limits(x.bits_a, x.act_signed))
        if x.bits_a <= 8 and x.act_zero_point is None
        else x
        for name, x in model.layers.items()
    }
    operands = {name: replace(x, limits=limits(x.bits, x.signed)) for name, x in model.operands.items()}
    changed = replace(model, layers=layers, operands=operands)
    return replace(changed, header=replace(model.header, format_version=changed.format_version))


def codes_of_openvino(
    model: PackedModel, image: np.ndarray, depth: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of OpenVINO's graph."""
    from quantsr.deploy.engines.openvino_core import core

    names = block_convs(model, depth)
    graph = openvino_model.build(model, depth, height=image.shape[0], width=image.shape[1])
    graph.add_outputs([(f"{name}.input", 0) for name in names])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    result = core().compile_model(graph, "CPU", settings)([image[None]])
    codes = {name: np.array(result[index][0]) for index, name in enumerate(names, start=1)}
    return codes, result[0][0]


def codes_of_onnx(
    model: PackedModel, image: np.ndarray, depth: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of the ONNX file in ONNX Runtime."""
    import onnxruntime

    names = block_convs(model, depth)
    proto = onnx_model.build(model, depth)
    values = [f"{name}.input.value" for name in names]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in values)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    picture, *codes = session.run(None, {onnx_graph.INPUT: image[None]})
    return {name: value[0] for name, value in zip(names, codes, strict=True)}, picture[0]


def codes_of_native(
    model: PackedModel, image: np.ndarray, depth: int, isa: str | None = None, threads: int = 2
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of the native engine."""
    engine = NativeEngine(model, depth, isa=isa, threads=threads)
    return engine.codes(image), engine.run(image[None])[0]


def codes_of_module(
    model: PackedModel, image: np.ndarray, depth: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of the torch module of a packed file."""
    return codes_of_training(to_module(model), image, depth)
