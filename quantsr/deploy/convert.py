"""From a trained network to a packed one; the way back is `module.to_module`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quantsr.archs import contract
from quantsr.archs.gray import is_gray
from quantsr.config import registries
from quantsr.deploy import operations
from quantsr.deploy.calibrate8 import InputChoice, choose_input, observe_inputs
from quantsr.deploy.convert_layers import Colours, array, float_layer, quantized_operands, trained_layer
from quantsr.deploy.lower import Lowered, lowered
from quantsr.deploy.packed import unwritten
from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.header import check_structure, parts_of
from quantsr.deploy.packed.model import FloatTensor, PackedLayer, PackedModel
from quantsr.deploy.program import Program
from quantsr.errors import InputError
from quantsr.quant.layers import QuantizedLayer
from quantsr.trained_files.checkpoint import plain

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
    """A trained network as a packed one, which holds its program where its type does not say it.

    Args:
        net: calibrated; every depth in `net.depths` that its ranking allows is kept.
        head_tail_bits: bits of the weights of the convs that training left in float. 8 quantizes
            them, per output channel, and their inputs to 16 bits, over `calib`; 16 keeps float16
            weights, 32 float32, both with float inputs. Tables of relative position biases are
            float16 below 32.
        calib: uint8 (H, W, 3) low-resolution RGB pictures; needed for 8 bits.
        first_bits: bits of the weight of the convolution that reads the picture (8, 16 or 32). In a
            network of 16 residual blocks it holds 0.2 % of the weights, but everything behind it
            quantizes what it gives: at 8 bits so many codes of 4-bit blocks flip that 1.2 % of the
            output values, not 0.05 %, are off by more than 1 of 255.
        provenance: what the file shall say about its origin (plain JSON values).

    Raises:
        InputError: it cannot be lowered (`lower.lower`), is not calibrated or not finite, or a
            quantizer has no integer codes; other bits, or 8 bits without pictures.
    """
    _check(net, head_tail_bits, calib, first_bits)
    header = _header(contract.of(net), head_tail_bits, provenance or {})
    found, is_written = _program(net, header)
    program = found.program
    first = _reading_the_picture(program)
    layers = {
        op.name: net.get_submodule(op.name) for op in program.operations if op.kind in ("conv", "linear")
    }
    floats = [n for n, m in layers.items() if isinstance(m, nn.Conv2d) and not isinstance(m, QuantizedLayer)]
    reads: dict[str, InputChoice | Colours] = {**first}
    if head_tail_bits == 8:
        seen = observe_inputs(net, [name for name in floats if name not in first], calib, header.depths)
        reads |= {name: choose_input(name, *seen[name]) for name in seen}
        for name in seen:
            logger.info("16-bit input of %s", reads[name])
    packed: dict[str, PackedLayer] = {}
    for name, module in layers.items():
        assert isinstance(module, nn.Conv2d | nn.Linear)
        if isinstance(module, nn.Conv2d) and name in floats:
            bits = first_bits if name in first else head_tail_bits
            packed[name] = float_layer(name, module, bits, reads.get(name))
        else:
            packed[name] = trained_layer(name, module)
    tensors = _float_tensors(net, found, head_tail_bits)
    model = PackedModel(header, packed, quantized_operands(net), tensors, program if is_written else None)
    try:
        shapes = operations.check(program, parts_of(model))
        if is_written:
            model = replace(
                model, header=_from_program(header, program, operations.scale_of(program, shapes))
            )
        check_structure(model)
    except ValueError as error:
        raise InputError(f"network: {error}") from error
    return replace(model, header=replace(model.header, format_version=model.format_version))


def _program(net: nn.Module, header: Header) -> tuple[Lowered, bool]:
    """The program with its constants, and whether the file has to hold it: the network's type and
    arguments do not say it."""
    if not unwritten.is_known(header):
        return lowered(net), True
    usual = unwritten.program_of(header)
    if registries.networks()[header.arch["type"]] is type(net):
        return Lowered(usual, {}), False
    found = lowered(net)  # of a subclass
    return found, found.program != usual.renumbered()


def _check(net: nn.Module, head_tail_bits: int, calib: Sequence[Any], first_bits: int) -> None:
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
    if contract.of(net).head_tail_converted:
        raise InputError(
            "model: its head and tail were converted to 8 bits before; convert the checkpoint it comes from"
        )


def _header(network: contract.Contract, head_tail_bits: int, provenance: Mapping[str, Any]) -> Header:
    """The header, with colours and scale as the network's arguments say."""
    arch: dict[str, Any] = plain(network.arch)
    if {arch.get("num_in_ch", 3), arch.get("num_out_ch", 3)} != {3} and not is_gray(network.module):
        raise InputError(
            "network_g.num_in_ch: only networks from RGB to RGB can be converted; give 3 channels in and out"
        )
    dynamic = network.depth_dynamic
    shortcuts = (
        (1.0,) if dynamic is None else tuple(float(unit.shortcut.detach()) for unit in dynamic.units())
    )
    red, green, blue = np.broadcast_to(np.asarray(arch.get("rgb_mean", 0.0), np.float64), 3).tolist()
    return Header(
        arch=arch,
        scale=network.scale or 1,
        depths=network.depths if network.ranking is not None else (len(shortcuts),),
        num_block=len(shortcuts),
        shortcuts=shortcuts,
        ranking=network.ranking,
        res_scale=float(arch.get("res_scale", 1.0)),
        img_range=float(arch.get("img_range", 1.0)),
        rgb_mean=(red, green, blue),
        head_tail_bits=head_tail_bits,
        provenance=dict(provenance),
    )


def _from_program(header: Header, program: Program, scale: int) -> Header:
    """The header with the scale and the colours of a program."""
    colours = next(op.attributes for op in program.operations if op.kind in ("normalize", "picture"))
    red, green, blue = colours["mean"]
    return replace(
        header, scale=scale, res_scale=1.0, img_range=colours["range"], rgb_mean=(red, green, blue)
    )


def _reading_the_picture(program: Program) -> dict[str, Colours]:
    """The convolutions that read the picture, and how."""
    colours = {
        op.output: Colours(tuple(op.attributes["mean"]), op.attributes["range"])
        for op in program.operations
        if op.kind == "normalize"
    }
    found = {op.name: colours.get(op.inputs[0]) for op in program.operations if op.kind == "conv"}
    return {name: how for name, how in found.items() if how is not None}


def _float_tensors(net: nn.Module, found: Lowered, head_tail_bits: int) -> dict[str, FloatTensor]:
    """What LayerNorms, PReLUs and attention read, in the order of the network's parameters: tables
    with 16 bits unless all is float."""
    wanted = {name for op in found.program.operations for name in operations.parameters(op)[1]}
    named = [name for name, _ in net.named_parameters() if name in wanted]
    tensors = {}
    for name in [*named, *sorted(wanted - set(named))]:
        values, bits = found.constants.get(name), 32
        if values is None:
            values = array(net.get_parameter(name))
        if values.ndim > 1 and head_tail_bits < 32:
            values, bits = values.astype(np.float16).astype(np.float32), 16
        tensors[name] = FloatTensor(name, values, bits)
    return tensors
