"""The interface of networks to the rest of the package; see docs/how-to/add_a_network.md.

Of every network: a torch module from pictures (B, C, h, w) in [0, 1] to (B, C, r*h, r*w), how it
was built, its upscaling factor, the size of its windows and the units of its trunk. Of a network
whose depth is chosen at each call also what `quantsr.archs.dqa.DepthDynamic` declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from quantsr.archs.dqa import DepthDynamic
from quantsr.archs.dqa_trunk import DepthTrunk
from quantsr.config.binding import with_defaults

_SCALE_ARGUMENTS = ("upscale", "scale")
"""How constructors name the upscaling factor."""

_WRAPPED = "network"
"""Argument with the section of the network that a constructor changes, `archs.quantized_arch`'s."""

_TRUNKS = ("body", "layers")
"""Attributes that hold the units of the trunk.

``body`` in EDSR, MSRResNet and QuantSR-C, ``layers`` in SwinIR and QuantSR-T.
"""

_RECORD = "_quantsr_built"


@dataclass(frozen=True)
class Contract:
    """A built network as the rest of the package sees it."""

    module: nn.Module
    type: str
    """Registered name under which it was built; the class name if it was built directly."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Every argument of the constructor, defaults included; empty if it was built directly.

    Defaults that no file can hold, such as classes of layers, are left out.
    """

    @property
    def arch(self) -> dict[str, Any]:
        """``type`` and arguments, as ``network_g`` in an option file."""
        return {"type": self.type, **self.arguments}

    @property
    def depth_dynamic(self) -> DepthDynamic | None:
        """The module where its depth is chosen at each call, else None."""
        return self.module if isinstance(self.module, DepthDynamic) else None

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths that are trained and evaluated, deepest first; empty if there is only one."""
        return () if self.depth_dynamic is None else self.depth_dynamic.depths

    @property
    def ranking(self) -> tuple[int, ...] | None:
        """Indices of units, most important first; None if unranked or without depths."""
        return None if self.depth_dynamic is None else self.depth_dynamic.ranking

    @property
    def protocol(self) -> str | None:
        """The published protocol of what is quantized, where there are several."""
        return None if self.depth_dynamic is None else self.depth_dynamic.protocol

    @property
    def head_tail_converted(self) -> bool:
        """Whether conversion brought the layers outside the units to 8 bits, which it does once."""
        return bool(getattr(self.module, "head_tail_converted", False))

    @property
    def scale(self) -> int | None:
        """The upscaling factor; None where the constructor has no argument for it."""
        return _scale_in(self.arguments)

    @property
    def window(self) -> int:
        """Sides of pictures become multiples of this many pixels: the side of the attention windows
        (``window_size``), or what a network of any origin takes (`archs.sizes`), else 1."""
        window = getattr(self.module, "side_multiple", getattr(self.module, "window_size", 1))
        return window if isinstance(window, int) else 1

    @property
    def trunk(self) -> Sequence[nn.Module] | None:
        """The units of the trunk in order; None where they are under no name known here."""
        if isinstance(self.module, DepthTrunk):
            return self.module.units()
        children = dict(self.module.named_children())
        for name in _TRUNKS:
            if isinstance(found := children.get(name), nn.Sequential | nn.ModuleList):
                return list(found)
        return None


def build(kind: str, constructor: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network ``constructor(**arguments)``; records ``kind`` and the arguments for `of`.

    Raises:
        TypeError, ValueError: from the constructor.
    """
    net = constructor(**arguments)
    defaults = {word: v for word, v in with_defaults(constructor, {}).items() if _is_plain(v)}
    record(net, kind, {**defaults, **arguments})
    return net


def record(net: nn.Module, kind: str, arguments: Mapping[str, Any]) -> None:
    """Let `of` say that ``net`` was built as ``kind``, a registered name, with ``arguments``."""
    setattr(net, _RECORD, (kind, dict(arguments)))


def _scale_in(arguments: Mapping[str, Any]) -> int | None:
    """The upscaling factor among a constructor's arguments, or those of the network it wraps."""
    for name in _SCALE_ARGUMENTS:
        if arguments.get(name) is not None:
            return int(arguments[name])
    inner = arguments.get(_WRAPPED)
    return _scale_in(inner) if isinstance(inner, Mapping) else None


def _is_plain(value: Any) -> bool:
    """Whether a file can hold the value: numbers, texts, booleans, None, and lists of them."""
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def of(net: nn.Module) -> Contract:
    """The contract of a network."""
    if isinstance(net, DepthDynamic):
        arguments = net.arch_options()
        return Contract(net, arguments.pop("type"), arguments)
    kind, bound = getattr(net, _RECORD, (type(net).__name__, {}))
    return Contract(net, kind, bound)
