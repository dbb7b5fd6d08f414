"""Names of the engines, and which are at hand. Imports no NumPy: `quantsr --version` is quick."""

from __future__ import annotations

from importlib.util import find_spec

from quantsr.deploy.native import library

ENGINES = ("auto", "native", "openvino", "onnxruntime", "ncnn", "torch")

PACKAGES = ENGINES[2:]
"""Engines that need a package of the same name."""


def installed() -> list[str]:
    """The engines of this installation in the order of "auto", native with the instruction set that
    it uses here."""
    isa = library.best_isa()
    return [*([f"native ({isa})"] if isa else []), *(name for name in PACKAGES if find_spec(name))]
