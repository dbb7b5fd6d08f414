"""The content of the checkpoints that training writes: parameters, and the description of the
network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantsr import __version__
from quantsr.archs import contract
from quantsr.quant import manifest
from quantsr.trained_files.checkpoint import FORMAT_VERSION, cpu_state, plain


def describe(net: nn.Module, *, iteration: int, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``quantsr`` entry: architecture, ranking, depths, manifest, iteration, options and the
    version."""
    network = contract.of(net)
    # A network that was built without the registry has no arguments; the options of its run have.
    arch = network.arch if network.arguments else (options or {}).get("network_g")
    described: dict[str, Any] = plain(
        {
            "format_version": FORMAT_VERSION,
            "arch": arch,
            "ranking": network.ranking,
            "depths": network.depths or None,
            "manifest": manifest(net, network.protocol),
            "iteration": iteration,
            "options": options,
            "version": __version__,
        }
    )
    return described


def network_file(
    net: nn.Module, ema: nn.Module | None, *, iteration: int, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a ``.pth``: ``params``, ``params_ema`` where there is an EMA network, and
    ``quantsr``."""
    content: dict[str, Any] = {"params": cpu_state(net)}
    if ema is not None:
        content["params_ema"] = cpu_state(ema)
    content["quantsr"] = describe(net, iteration=iteration, options=options)
    return content
