"""From a trained network to a converted one; the way back is `module.to_module`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantsr.archs import QuantSR_C, QuantSR_T
from quantsr.archs.dqa import DepthDynamic
from quantsr.deploy.calibrate8 import (
    InputChoice,
    choose_input,
    choose_weight_steps,
    observe_inputs,
    quantize_weight,
)
from quantsr.deploy.model import (
    ConvLayer,
    Float,
    FloatTensor,
    Header,
    LinearLayer,
    Operand,
    PackedLayer,
    PackedModel,
)
from quantsr.errors import InputError
from quantsr.quant.attention import QuantOperand
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.layers import QuantizedLayer
from quantsr.quant.quantizers import step_parameters
from quantsr.ranges import IntRange

logger = logging.getLogger(__name__)

HEAD_TAIL_BITS = (8, 16, 32)


def convert(
    net: nn.Module,
    *,
    head_tail_bits: int = 8,
    calib: Sequence[NDArray[np.uint8]] = (),
    first_bits: int = 32,
    provenance: Mapping[str, Any] | None = None,
) -> PackedModel:
    """The integer network of a trained QuantSR-C or QuantSR-T.

    Args:
        net: calibrated; every depth in `net.depths` that its ranking allows is kept.
        head_tail_bits: bits of the weights of the convs that training left in float. 8 quantizes
            them, per output channel, and their inputs to 16 bits, over `calib`; 16 keeps float16
            weights, 32 float32, both with float inputs. Tables of relative position biases are
            float16 below 32.
        calib: uint8 (H, W, 3) low-resolution RGB pictures; needed for 8 bits.
        first_bits: bits of conv_first's weight (8, 16 or 32). It holds 0.2 % of the weights, but
            everything behind it quantizes what it gives: at 8 bits so many codes of 4-bit blocks
            flip that 1.2 % of the output values, not 0.05 %, are off by more than 1 of 255.
        provenance: what the file shall say about its origin (plain JSON values).

    Raises:
        InputError: for another architecture, a network that is not calibrated, a quantizer without
            integer codes, other bits, or 8 bits without pictures.
    """
    if not isinstance(net, QuantSR_C | QuantSR_T):
        raise InputError(
            f"network_g.type: {type(net).__name__} cannot be converted; only QuantSR_C and QuantSR_T can"
        )
    if head_tail_bits not in HEAD_TAIL_BITS:
        raise InputError(
            f"head-tail-bits: {head_tail_bits} is not possible; choose one of {list(HEAD_TAIL_BITS)}"
        )
    if head_tail_bits == 8 and not calib:
        raise InputError(
            "head-tail-bits: 8 bits need pictures to calibrate on; give --calib DIR, or choose 16 or 32"
        )
    if first_bits not in HEAD_TAIL_BITS:
        raise InputError(f"first-bits: {first_bits} is not possible; choose one of {list(HEAD_TAIL_BITS)}")
    if bad := [name for name, tensor in net.state_dict().items() if not bool(tensor.isfinite().all())]:
        raise InputError(
            f"model: {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''} not finite; export an earlier checkpoint"
        )
    header = _header(net, head_tail_bits, provenance or {})
    modules = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    floats = [name for name, m in modules.items() if not isinstance(m, QuantizedLayer)]
    if net.head_tail_converted:
        raise InputError(
            "model: its head and tail were converted to 8 bits before; convert the checkpoint it comes from"
        )
    inputs: dict[str, InputChoice] = {}
    if head_tail_bits == 8:
        seen = observe_inputs(net, [n for n in floats if n != "conv_first"], calib, header.depths)
        inputs = {name: choose_input(name, *seen[name]) for name in seen}
        for choice in inputs.values():
            logger.info("16-bit input of %s", choice)
    layers = {}
    for name, module in modules.items():
        bits = first_bits if name == "conv_first" else head_tail_bits
        layers[name] = (
            _float_layer(name, module, header, inputs.get(name), bits)
            if isinstance(module, nn.Conv2d) and name in floats
            else _trained_layer(name, module)
        )
    model = PackedModel(header, layers, _operands(net), _float_tensors(net, head_tail_bits))
    return replace(model, header=replace(header, format_version=model.format_version))


def _header(net: DepthDynamic, head_tail_bits: int, provenance: Mapping[str, Any]) -> Header:
    arch = net.arch_options()
    if arch["num_in_ch"] != 3 or arch["num_out_ch"] != 3:
        raise InputError(
            "network_g.num_in_ch: only networks from RGB to RGB can be converted; give 3 channels in and out"
        )
    red, green, blue = (float(m) for m in np.broadcast_to(np.asarray(arch["rgb_mean"], np.float64), 3))
    shortcuts = tuple(float(unit.shortcut.detach()) for unit in net.units())
    return Header(
        arch=arch,
        scale=arch["upscale"],
        depths=net.depths if net.ranking is not None else (len(shortcuts),),
        num_block=len(shortcuts),
        shortcuts=shortcuts,
        ranking=net.ranking,
        res_scale=float(arch.get("res_scale", 1.0)),
        img_range=float(arch["img_range"]),
        rgb_mean=(red, green, blue),
        head_tail_bits=head_tail_bits,
        provenance=dict(provenance),
    )


def _trained_layer(name: str, conv: nn.Conv2d | nn.Linear) -> PackedLayer:
    """A layer as training quantized it; one that is float (32 bits) stays so."""
    kind = LinearLayer if isinstance(conv, nn.Linear) else ConvLayer
    layer: PackedLayer = kind(name, _array(conv.weight), _bias(conv))
    if not isinstance(conv, QuantizedLayer):
        return layer
    if conv.weight_quantizer is not None:
        try:
            codes = conv.weight_codes()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{name}: {error}") from error
        step = conv.weight_quantizer.step.detach().clamp_min(MIN_STEP)
        layer = replace(
            layer, weight=codes.cpu().numpy(), bits_w=conv.nbits_w, weight_step=_array(step).reshape(-1)
        )
    if conv.input_quantizer is not None:
        codes = _input_codes(name, conv)
        layer = replace(
            layer,
            bits_a=conv.nbits_a,
            act_step=codes.step,
            act_tau=codes.tau if codes.tau.any() else None,
            act_signed=codes.range.qmin < 0,
            act_limits=codes.limits(conv.nbits_a),
        )
        if codes.offset:
            layer = replace(layer, bias=layer.bias + _offset_output(layer, codes.offset))
    return layer


class _InputCodes(NamedTuple):
    """What a packed file holds of an input quantizer: values are `step * code + offset`."""

    step: Float
    """(1,)"""
    tau: Float
    """(I,)"""
    range: IntRange
    """Of the codes, less their zero point."""
    offset: float

    def limits(self, bits: int) -> tuple[int, int] | None:
        """The range where it is not that of all codes of so many bits."""
        whole = IntRange.of(bits, signed=self.range.qmin < 0)
        return None if self.range == whole else self.range.bounds


def _input_codes(name: str, module: QuantizedLayer) -> _InputCodes:
    quantizer = module.input_quantizer
    assert quantizer is not None
    try:
        integers = quantizer.integers()
    except RuntimeError as error:
        raise InputError(f"{name}: {error}") from error
    if integers is None:
        raise InputError(
            f"{name}: quantizer {module.quantizer} has no integer input codes; train with another"
        )
    spec = integers.spec
    low, high = spec.centred.bounds
    if not low <= 0 <= high or high - low >= 2**quantizer.bits:
        raise InputError(
            f"{name}: quantizer {module.quantizer} has input codes from {low} to {high}, which are not codes of "
            f"{quantizer.bits} bits with 0 among them; train with another"
        )
    step = _array(spec.step.detach().clamp_min(MIN_STEP)).reshape(1)
    return _InputCodes(step, _array(spec.tau).reshape(-1), spec.centred, integers.offset)


def _offset_output(layer: PackedLayer, offset: float) -> Float:
    """(O,) what an offset of all of its inputs adds to a layer's outputs."""
    weight = layer.float_weight().astype(np.float64)
    return (offset * weight.reshape(len(weight), -1).sum(1)).astype(np.float32)


def _operands(net: nn.Module) -> dict[str, Operand]:
    """The quantizers of attention products."""
    operands = {}
    for name, module in net.named_modules():
        if isinstance(module, QuantOperand) and module.input_quantizer is not None:
            codes, bits = _input_codes(name, module), module.input_quantizer.bits
            # No bias takes an offset here: the levels move by it.
            tau = (codes.tau.astype(np.float64) + codes.offset).astype(np.float32)
            operands[name] = Operand(
                name=name,
                channels=module.input_quantizer.channels,
                bits=bits,
                step=codes.step,
                tau=tau if tau.any() else None,
                signed=codes.range.qmin < 0,
                limits=codes.limits(bits),
            )
    return operands


def _float_tensors(net: DepthDynamic, head_tail_bits: int) -> dict[str, FloatTensor]:
    """The parameters of no conv, linear layer, quantizer or unit of depth: LayerNorms and tables,
    the latter with 16 bits unless all is float."""
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    elsewhere = {p for m in layers for p in m.parameters()} | set(step_parameters(net).values())
    elsewhere |= {unit.shortcut for unit in net.units()}
    tensors = {}
    for name, parameter in net.named_parameters():
        if parameter not in elsewhere:
            values, bits = _array(parameter), 32
            if values.ndim > 1 and head_tail_bits < 32:
                values, bits = values.astype(np.float16).astype(np.float32), 16
            tensors[name] = FloatTensor(name, values, bits)
    return tensors


def _float_layer(
    name: str, conv: nn.Conv2d, header: Header, choice: InputChoice | None, bits: int
) -> ConvLayer:
    """A layer outside the blocks at 8, 16 or 32 bits."""
    weight, bias = _array(conv.weight), _bias(conv)
    if bits > 8:
        if bits == 16:
            weight = weight.astype(np.float16).astype(np.float32)
        return ConvLayer(name, weight, bias, bits_w=bits)
    if choice is not None:
        weight = weight * choice.equal[:, None, None]
    step = choose_weight_steps(weight)
    layer = ConvLayer(
        name,
        quantize_weight(weight, step),
        bias,
        bits_w=8,
        weight_step=step,
        bits_a=8 if choice is None else 16,
        act_step=np.ones(1, np.float32),
    )
    if name != "conv_first":
        assert choice is not None
        return replace(layer, act_step=np.array([choice.step], np.float32), act_equal=choice.equal)
    layer = replace(
        layer,
        act_step=np.array([header.img_range / 255], np.float32),
        act_tau=_pixel_tau(header),
        act_signed=False,
        act_zero_point=np.rint(255 * np.asarray(header.rgb_mean)).astype(np.int32),
    )
    return replace(layer, bias=bias + pixel_offset(layer))


def _pixel_tau(header: Header) -> NDArray[np.float32]:
    """tau with which the codes of `(pixel / 255 - mean) * img_range` are the pixels themselves."""
    return (header.img_range * np.asarray(header.rgb_mean)).astype(np.float32)


def pixel_offset(layer: PackedLayer) -> NDArray[np.float32]:
    """(O,) what the bias of conv_first gains because its zero point is the mean rounded to a whole
    pixel value.

    Inside the picture this makes the layer exact; at the border the padding stands for the rounded
    mean, off by at most half a pixel value.
    """
    assert layer.act_step is not None
    # (I,)
    shift = layer.act_step.astype(np.float64) * layer.zero_point() - layer.tau().astype(np.float64)
    return np.einsum("oikl,i->o", layer.float_weight().astype(np.float64), shift).astype(np.float32)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy().copy()


def _bias(conv: nn.Conv2d | nn.Linear) -> NDArray[np.float32]:
    return np.zeros(len(conv.weight), np.float32) if conv.bias is None else _array(conv.bias)
