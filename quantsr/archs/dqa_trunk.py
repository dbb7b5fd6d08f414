"""Dynamic depth for any network with a trunk of residual units.

Nothing is wrapped: the network's class and those of its units are replaced by subclasses of the
same name, as torch's parametrizations do, so that all layers keep their names.
"""

from __future__ import annotations

import contextvars
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from quantsr import depth as rules
from quantsr.archs.dqa import DepthDynamic, Unit, as_unit
from quantsr.archs.load_float import FloatStart, LoadReport, copy_float
from quantsr.archs.trunk import Trunk
from quantsr.quant.mixins import with_mixin


class _Shared:
    """Outputs of units that several sub-networks of one call have in common, because they keep the
    same units up to there."""

    def __init__(self, kept: Sequence[frozenset[int]], count: int) -> None:
        self._left = Counter(_key(units, index) for units in kept for index in range(count))
        self._outputs: dict[Any, Tensor] = {}

    def output(self, units: frozenset[int], index: int, compute: Callable[[], Tensor]) -> Tensor:
        """The output of unit ``index`` in the sub-network of these units; forgotten after its last
        use."""
        key = _key(units, index)
        self._left[key] -= 1
        found = self._outputs.get(key)
        out = compute() if found is None else found
        if self._left[key]:
            self._outputs[key] = out
        else:
            self._outputs.pop(key, None)
        return out


def _key(units: frozenset[int], index: int) -> tuple[int, frozenset[int]]:
    return index, frozenset(i for i in units if i <= index)


_RUN: contextvars.ContextVar[tuple[frozenset[int], _Shared]] = contextvars.ContextVar("run")
"""The units of the sub-network that runs, and what it shares with others. The forward of a foreign
network has no argument that could hand them on."""


class ResidualUnit(Unit):
    """Mixin of residual units: ``s * x + F(x)`` for a unit that gives ``x + F(x)``."""

    index: int
    """Among the units of the network."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The unit's output, or ``s * x`` where the sub-network that runs skips it."""
        try:
            kept, shared = _RUN.get()
        except LookupError:
            raise RuntimeError("a unit of depth runs only inside of its network; call the network") from None
        return shared.output(
            kept,
            self.index,
            lambda: self._run(x, *args, **kwargs) if self.index in kept else self.skip(x),
        )

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.without_shortcut(x, *args, **kwargs) + x * (self.shortcut - 1).to(x.dtype)

    def without_shortcut(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x + F(x)``, what the unit gives with a shortcut of 1."""
        out: Tensor = super().forward(x, *args, **kwargs)
        return out


class DepthTrunk(DepthDynamic):
    """Mixin of networks whose forward calls units of the class `ResidualUnit`.

    Its forward runs once for each sub-network: layers before the trunk give the same again, units
    that sub-networks have in common run once.
    """

    _trunk: Trunk

    def units(self) -> Sequence[Unit]:
        """The units of the trunk."""
        return [as_unit(self.get_submodule(name)) for name in self._trunk.units]

    def run_units(self, x: Tensor, kept: Sequence[frozenset[int]]) -> list[Tensor]:
        """See :meth:`DepthDynamic.run_units`."""
        shared = _Shared(kept, len(self._trunk.units))
        return [self._run_one(x, units, shared) for units in kept]

    def _run_one(self, x: Tensor, units: frozenset[int], shared: _Shared) -> Tensor:
        token = _RUN.set((units, shared))
        try:
            out: Tensor = super(DepthDynamic, self).forward(x)
            return out
        finally:
            _RUN.reset(token)

    def _set_trunk(self, trunk: Trunk, depths: Sequence[int], options: Mapping[str, Any]) -> None:
        self._trunk = trunk
        self._set_depths(depths, len(trunk.units))
        self.describe(options)

    def describe(self, options: Mapping[str, Any]) -> None:
        """Set the ``type`` and arguments that build the network again, but for depths and
        trunk."""
        self._options = {**options, "trunk": self._trunk.name}

    def load_float(self, state_dict: Mapping[str, Tensor], which: FloatStart = "all") -> LoadReport:
        """Copy tensors of the same name and shape from the float network.

        Args:
            state_dict: of the network inside.
            which: ``all`` matching tensors, or only those of the layers outside the trunk.

        Raises:
            ValueError: if nothing matches, or for ``deepen``, which only QuantSR-C has.
        """
        if which == "deepen":
            raise ValueError("fp_init: deepen is for QuantSR_C; use all")
        if which == "head_tail":
            inside = tuple(f"{name}." for name in self._trunk.units)
            state_dict = {name: v for name, v in state_dict.items() if not name.startswith(inside)}
        return copy_float(self, state_dict)


def add_depths(net: nn.Module, trunk: Trunk, depths: Sequence[int], options: Mapping[str, Any]) -> DepthTrunk:
    """Make the depth of a network an argument of each call, see `DepthDynamic`.

    Args:
        net: changed in place; its state dict gains ``UNIT.shortcut`` for each unit.
        trunk: found in it by `quantsr.archs.trunk.find_trunk`.
        depths: that are trained and evaluated; the number of units is among them.
        options: ``type`` and arguments that build the network again, but for depths and trunk.

    Raises:
        ValueError: of depths, or where the network or a unit has an attribute of a name that the
            mixins need.
    """
    units = [net.get_submodule(name) for name in trunk.units]
    _check_names(net, DepthTrunk)
    for unit in units:
        _check_names(unit, ResidualUnit)
    rules.check_depths(depths, len(units))
    device = next(net.parameters()).device
    for index, module in enumerate(units):
        module.__class__ = with_mixin(ResidualUnit, type(module))
        unit = cast(ResidualUnit, module)
        unit.index = index
        unit.add_shortcut()
        unit.shortcut.data = unit.shortcut.to(device)
    net.__class__ = with_mixin(DepthTrunk, type(net))
    found = cast(DepthTrunk, net)
    found._set_trunk(trunk, depths, options)
    return found


def _check_names(module: nn.Module, mixin: type[nn.Module]) -> None:
    bases = [base for base in mixin.__mro__ if base not in nn.Module.__mro__]
    names = {name for base in bases for name in (*vars(base), *inspect.get_annotations(base))}
    for name in sorted(names - {"forward"}):
        if not name.startswith("__") and hasattr(module, name):
            raise ValueError(
                f"{type(module).__name__} has an attribute {name!r}, a name that networks with depths need; rename it"
            )
