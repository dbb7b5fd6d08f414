"""quantsr: train, compare and ship low-bit super-resolution networks.

The public names are ``load`` (a network from a name or file), ``Upscaler`` (upscales pictures) and
``__version__``. They are resolved on first use, so that importing the package loads neither torch
nor OpenVINO.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantsr.deploy.upscale.upscaler import Upscaler
    from quantsr.loading import load

    __version__: str

__all__ = ["Upscaler", "__version__", "load"]

_MODULE_OF = {"load": "quantsr.loading", "Upscaler": "quantsr.deploy.upscale.upscaler"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("quantsr.version").version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'quantsr' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
