"""Lowering: a torch module as a program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantsr.archs import contract
from quantsr.deploy.lowering import rewrite
from quantsr.deploy.lowering.functions import Tracing
from quantsr.deploy.lowering.layers import recording
from quantsr.deploy.lowering.traced import Record, Traced
from quantsr.deploy.program import Program
from quantsr.errors import InputError


def lower(net: nn.Module) -> Program:
    """The program of a network at full depth.

    Args:
        net: from pictures (B, 3, h, w) in [0, 1] to (B, 3, r*h, r*w); it need not be calibrated.

    Raises:
        InputError: it computes something that no operation of programs does, with the names of the
            operation and of the module; or what it computes depends on the picture's size.
    """
    return lowered(net).program


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network as a program."""

    program: Program
    constants: Mapping[str, NDArray[np.float32]]
    """Float tensors that the program reads and the network computes of its parameters, by name."""


def lowered(net: nn.Module) -> Lowered:
    """The program of a network, as `lower`, and its constants."""
    window = contract.of(net).window
    sizes = _sizes(window)
    first = _traced(net, window, sizes[0])
    if first.record.shrink > 1 or first.record.multiples:
        # a side beyond a multiple tells it from its divisors
        sizes = _sizes(window, max([first.record.shrink**2, *(n + 1 for n in first.record.multiples)]))
        first = _traced(net, window, sizes[0])
    second = _traced(net, window, sizes[1])
    if first.program != second.program:
        raise InputError("network: its operations depend on the picture's size, which a program's cannot")
    return Lowered(first.program, first.record.constants)


def _sizes(window: int, most: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two pictures' heights and widths, which are no multiples of the window; one side is at least
    `most`, the other its root."""
    if window == 1 and most == 1:
        return (13, 18), (16, 11)
    short, long = (-(-max(2 * window, n) // window) for n in (2 * math.isqrt(most), most + math.isqrt(most)))
    long = max(long, short + 1)
    return (short * window - 1, long * window - 1), (long * window - 1, short * window - 1)


class _Traced(NamedTuple):
    program: Program
    record: Record


def _traced(net: nn.Module, window: int, size: tuple[int, int]) -> _Traced:
    """The program as far as a picture of that size tells."""
    dynamic = contract.of(net).depth_dynamic
    units = [] if dynamic is None else dynamic.units()
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    shortcuts = {unit.shortcut.data_ptr(): index for index, unit in enumerate(units)}
    record = Tracing(size, window, shortcuts, device, parameters=dict(net.named_parameters()))
    try:
        # in inference mode torch hands on some functions whole
        with torch.inference_mode(False), torch.no_grad(), recording(net, record):
            result = net(record.input())
    except InputError:
        raise
    except Exception as error:
        where = record.modules[-1] if record.modules else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"network: {where or 'its forward'} cannot be lowered ({reason})") from error
    program = rewrite.program(record.operations, _result(record, result), record.multiple, record.keep)
    return _Traced(program, record)


def _result(record: Record, result: object) -> int:
    """The value of the upscaled picture, of which `result` must be all or, where the picture was
    padded, its upper left part."""
    if not isinstance(result, Traced) or result.dim() != 4 or result.shape[1] != 3:
        raise InputError("network: does not give a picture (B, 3, height, width)")
    found = record.find(record.repeated(result))
    height, width = found.map.size
    whole = torch.arange(3 * height * width).view(1, 3, height, width)
    padded = record.grid
    scale = height // padded[0]
    if (height, width) != (scale * padded[0], scale * padded[1]) or not scale:
        raise InputError(
            f"network: gives {height} x {width} pixels of a picture of {padded[0]} x {padded[1]}"
        )
    shown = whole[..., : scale * record.picture[0], : scale * record.picture[1]]
    if not torch.equal(torch.from_numpy(found.places), shown):
        raise InputError("network: its picture is not the upscaled picture, or a part of it")
    return found.map.value
