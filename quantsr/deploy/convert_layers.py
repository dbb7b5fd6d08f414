"""Layers of a trained network as those of a packed file."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantsr import basicsr_compat
from quantsr.deploy.calibrate8 import InputChoice, choose_weight_steps, quantize_weight
from quantsr.deploy.packed.model import ConvLayer, Float, LinearLayer, Operand, PackedLayer
from quantsr.errors import InputError
from quantsr.quant.attention import QuantOperand
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.layers import QuantizedLayer
from quantsr.ranges import IntRange


class Colours(NamedTuple):
    """How the first layer reads the picture: `(pixel / 255 - mean) * range`."""

    mean: tuple[float, float, float]
    range: float


def trained_layer(name: str, conv: nn.Conv2d | nn.Linear) -> PackedLayer:
    """A layer as training quantized it; one that is float (32 bits) stays so."""
    kind = LinearLayer if isinstance(conv, nn.Linear) else ConvLayer
    groups = conv.groups if isinstance(conv, nn.Conv2d) else 1
    layer: PackedLayer = kind(name, array(conv.weight), _bias(conv), groups=groups)
    if not isinstance(conv, QuantizedLayer):
        return layer
    if conv.weight_quantizer is not None:
        try:
            codes = conv.weight_codes()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{name}: {error}") from error
        step = conv.weight_quantizer.step.detach().clamp_min(MIN_STEP)
        layer = replace(
            layer, weight=codes.cpu().numpy(), bits_w=conv.nbits_w, weight_step=array(step).reshape(-1)
        )
    if conv.input_quantizer is not None:
        codes = _input_codes(name, conv)
        if codes.offset:
            layer = replace(layer, bias=layer.bias + _offset_output(layer, codes.offset))
        equal = None if conv.input_equal is None else array(conv.input_equal)
        tau = codes.tau if equal is None else codes.tau * equal
        layer = replace(
            layer,
            bits_a=conv.nbits_a,
            act_step=codes.step,
            act_tau=tau if tau.any() else None,
            act_equal=equal,
            act_signed=codes.range.qmin < 0,
            act_limits=codes.limits(conv.nbits_a),
        )
    elif conv.input_equal is not None and not bool((conv.input_equal == 1).all()):
        raise InputError(f"{name}: is equalized, but its input is float; give it activation bits")
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
    step = array(spec.step.detach().clamp_min(MIN_STEP)).reshape(1)
    return _InputCodes(step, array(spec.tau).reshape(-1), spec.centred, integers.offset)


def _offset_output(layer: PackedLayer, offset: float) -> Float:
    """(O,) what an offset of all of its inputs adds to a layer's outputs."""
    weight = layer.float_weight().astype(np.float64)
    return (offset * weight.reshape(len(weight), -1).sum(1)).astype(np.float32)


def quantized_operands(net: nn.Module) -> dict[str, Operand]:
    """The quantizers of attention products."""
    operands = {}
    for name, module in net.named_modules():
        if isinstance(module, QuantOperand) and module.input_quantizer is not None:
            codes, bits = _input_codes(name, module), module.input_quantizer.bits
            form = operand_form(net, name)
            # No bias takes an offset here: the levels move by it.
            tau = (codes.tau.astype(np.float64) + codes.offset) / form.factor
            tau = np.broadcast_to(tau, form.channels)
            operands[name] = Operand(
                name=name,
                channels=form.channels,
                bits=bits,
                step=(codes.step / form.factor).astype(np.float32),
                tau=tau.astype(np.float32) if tau.any() else None,
                signed=codes.range.qmin < 0,
                limits=codes.limits(bits),
            )
    return operands


class OperandForm(NamedTuple):
    """How an operand of a network is that of the operation ``window_attention``."""

    channels: int
    """Of the operation's operand."""
    factor: float
    """What the network multiplies the operand by before it quantizes it."""


def operand_form(net: nn.Module, name: str) -> OperandForm:
    """The form of the operand of this name, such as ``blocks.0.attn.scores.left``.

    SwinIR's attention multiplies the query by ``1 / sqrt(d)`` before the product, the operation
    multiplies the scores; and each of its operands has one ``tau``, not one for each channel.
    """
    operand = net.get_submodule(name)
    assert isinstance(operand, QuantOperand)
    assert operand.input_quantizer is not None
    path, product, side = name.rsplit(".", 2)
    attention = net.get_submodule(path)
    if not isinstance(attention, basicsr_compat.WindowAttention):
        return OperandForm(operand.input_quantizer.channels, 1.0)
    tokens = attention.window_size[0] * attention.window_size[1]
    return OperandForm(
        tokens if (product, side) == ("mixture", "left") else attention.dim,
        attention.scale if (product, side) == ("scores", "left") else 1.0,
    )


def float_layer(name: str, conv: nn.Conv2d, bits: int, reads: InputChoice | Colours | None) -> ConvLayer:
    """A convolution that training left in float.

    Args:
        bits: of its weight: 8, 16 or 32.
        reads: what 8 bits need to know of its input: the picture, or what calibration chose.

    Raises:
        InputError: 8 bits, and the mean of the picture lies outside of it.
    """
    weight, bias = array(conv.weight), _bias(conv)
    if bits > 8:
        if bits == 16:
            weight = weight.astype(np.float16).astype(np.float32)
        return ConvLayer(name, weight, bias, bits_w=bits, groups=conv.groups)
    if isinstance(reads, InputChoice):
        weight = weight * ConvLayer(name, weight, bias, groups=conv.groups).of_inputs(reads.equal)
    step = choose_weight_steps(weight)
    codes = quantize_weight(weight, step)
    layer = ConvLayer(name, codes, bias, bits_w=8, weight_step=step, groups=conv.groups)
    if not isinstance(reads, Colours):
        assert reads is not None
        return replace(layer, bits_a=16, act_step=np.array([reads.step], np.float32), act_equal=reads.equal)
    zero = np.rint(255 * np.asarray(reads.mean)).astype(np.int32)
    if zero.min() < 0 or zero.max() > 255:
        raise InputError(f"first-bits: 8 bits of {name} need a mean of pictures in 0..1; choose 16 or 32")
    layer = replace(
        layer,
        bits_a=8,
        act_step=np.array([reads.range / 255], np.float32),
        # with this tau the codes of `(pixel / 255 - mean) * range` are the pixels themselves
        act_tau=(reads.range * np.asarray(reads.mean)).astype(np.float32),
        act_signed=False,
        act_zero_point=zero,
    )
    return replace(layer, bias=bias + pixel_offset(layer))


def pixel_offset(layer: PackedLayer) -> NDArray[np.float32]:
    """(O,) what the bias of such a layer gains, since its zero point is the mean rounded to a whole
    pixel value.

    Inside the picture this makes the layer exact; at the border the padding stands for the rounded
    mean, off by at most half a pixel value.
    """
    assert layer.act_step is not None
    # (I,)
    shift = layer.act_step.astype(np.float64) * layer.zero_point() - layer.tau().astype(np.float64)
    sums = layer.float_weight().astype(np.float64).sum((2, 3))  # (O, I / G)
    return (sums * layer.of_inputs(shift)[..., 0, 0]).sum(1).astype(np.float32)


def array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy().copy()


def _bias(conv: nn.Conv2d | nn.Linear) -> NDArray[np.float32]:
    return np.zeros(len(conv.weight), np.float32) if conv.bias is None else array(conv.bias)
