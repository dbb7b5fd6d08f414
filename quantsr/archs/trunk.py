"""The trunk of a network: its run of residual units, found by running the network, or named."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.archs.modes import eval_mode
from quantsr.archs.trial import trial_picture
from quantsr.config.problems import did_you_mean

_LEAST_UNITS = 2


@dataclass(frozen=True)
class Trunk:
    """A run of residual units of one class."""

    name: str
    """Of the ``nn.Sequential`` or ``nn.ModuleList`` that holds them, or a pattern of their
    names."""
    units: tuple[str, ...]
    """Names of the units in order."""


@dataclass
class _Call:
    """What a unit read and gave in the trial run."""

    order: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    found: Any
    """A copy of the output, taken before the rest of the network ran."""


def find_trunk(net: nn.Module, name: str | None = None, *, window: int = 1) -> Trunk:
    """The trunk of a float network: units of one class, called once each in their order.

    Every unit must give a tensor of the shape of its input, and a positive multiple of its input
    where its parameters are 0: then it is residual, and what is left of it in a sub-network that
    skips it makes sense. Found are children of ``nn.Sequential`` and ``nn.ModuleList``, and of
    nested runs the outermost.

    Args:
        name: of such a container, ``body``, or a pattern of the units' names, such as
            ``layers.*.blocks.*``, whose parts between dots are the shell's patterns.
        window: side of the network's attention windows in pixels.

    Raises:
        ValueError: there is no trunk, or no single one, or not under this name. One line.
    """
    names = {module: name for name, module in net.named_modules()}
    runs = [Trunk(names[c], units) for c in names if (units := _longest_run(c, names))]
    if name is not None:
        wanted = _named(net, name, runs)
        if problem := _problem(net, wanted, _trial(net, wanted.units, window)):
            raise ValueError(f"{name!r} is no trunk: {problem}")
        return wanted
    calls = _trial(net, [unit for run in runs for unit in run.units], window)
    found: list[Trunk] = []
    for run in sorted(runs, key=lambda run: run.units[0].count(".")):
        inside = any(
            unit.startswith(f"{outer}.") for trunk in found for outer in trunk.units for unit in run.units
        )
        if not inside and _problem(net, run, calls) is None:
            found.append(run)
    if not found:
        kind = type(net).__name__
        raise ValueError(
            f"no run of residual units of one class is found in {kind}; name it, such as trunk: body"
        )
    if len(found) > 1:
        known = ", ".join(trunk.name for trunk in found[:4]) + (" ..." if len(found) > 4 else "")
        raise ValueError(
            f"there are {len(found)} runs of residual units, {known}; name one, such as trunk: {found[0].name}, "
            "or a pattern of units"
        )
    return found[0]


def _longest_run(container: nn.Module, names: Mapping[nn.Module, str]) -> tuple[str, ...]:
    """The most children of one class in a row; empty where there are fewer than two, or no
    parameters in them."""
    if not isinstance(container, nn.Sequential | nn.ModuleList):
        return ()
    runs = [tuple(run) for _, run in itertools.groupby(container, type)]
    longest = max(runs, key=len, default=())
    if len(longest) < _LEAST_UNITS or not all(any(True for _ in unit.parameters()) for unit in longest):
        return ()
    return tuple(names[unit] for unit in longest)


def _named(net: nn.Module, name: str, runs: Sequence[Trunk]) -> Trunk:
    for run in runs:
        if run.name == name:
            return run
    parts = name.split(".")
    units = [
        found
        for found, _ in net.named_modules()
        if found.count(".") == len(parts) - 1
        and all(fnmatch.fnmatchcase(a, b) for a, b in zip(found.split("."), parts, strict=True))
    ]
    if len(units) < _LEAST_UNITS:
        known = [run.name for run in runs]
        hint = f"; {did_you_mean(name, known)}" if known else ""
        raise ValueError(f"{name!r} names no run of {_LEAST_UNITS} or more units of one class{hint}")
    return Trunk(name, tuple(units))


def _trial(net: nn.Module, units: Sequence[str], window: int) -> dict[str, list[_Call]]:
    """The calls of these units while the network runs on noise."""
    calls: dict[str, list[_Call]] = {name: [] for name in units}
    orders = itertools.count()
    entered: dict[str, tuple[int, Any, Any]] = {}

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            entered[name] = (next(orders), _copied(args), _copied(kwargs))

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name].append(_Call(*entered[name], output, _copied(output)))

        return hook

    handles = []
    for name in units:
        unit = net.get_submodule(name)
        handles += [
            unit.register_forward_pre_hook(enter(name), with_kwargs=True),
            unit.register_forward_hook(leave(name)),
        ]
    try:
        with eval_mode(net), torch.no_grad():
            net(trial_picture(net, window))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(values: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, torch.clone, values)


def _problem(net: nn.Module, run: Trunk, calls: Mapping[str, Sequence[_Call]]) -> str | None:
    """Why the units are no trunk; None where they are one."""
    kinds = {type(net.get_submodule(name)).__name__ for name in run.units}
    if len(kinds) > 1:
        return f"its units are of several classes, {', '.join(sorted(kinds))}"
    if any(len(calls[name]) != 1 for name in run.units):
        return "its units do not run once each"
    seen = [calls[name][0] for name in run.units]
    if sorted(seen, key=lambda call: call.order) != seen:
        return "its units do not run in their order"
    shapes = set()
    for name, call in zip(run.units, seen, strict=True):
        if not call.args or not isinstance(call.args[0], Tensor) or not isinstance(call.output, Tensor):
            return f"{name} does not give one tensor for one"
        shapes |= {call.args[0].shape, call.output.shape}
    if len(shapes) > 1:
        return "its units give tensors of other shapes than they read"
    for name, call in zip(run.units, seen, strict=True):
        if call is not seen[-1] and not torch.equal(call.output, call.found):
            return f"the output of {name} is changed in place afterwards"
        if not _is_residual(net.get_submodule(name), call):
            return f"{name} is not residual, since without its parameters it does not give its input"
    return None


def _is_residual(unit: nn.Module, call: _Call) -> bool:
    x = call.args[0].clone()
    zeros = {name: torch.zeros_like(value) for name, value in unit.named_parameters()}
    with eval_mode(unit), torch.no_grad():
        out = torch.func.functional_call(unit, zeros, (x, *call.args[1:]), dict(call.kwargs))
    x = call.args[0].double()
    factor = float((out.double() * x).sum() / x.square().sum().clamp_min(1e-30))
    largest = float(x.abs().max())
    return factor > 0 and bool(((out - factor * x).abs() <= 1e-4 * factor * largest).all())
