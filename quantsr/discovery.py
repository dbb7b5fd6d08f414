"""Files that are found by their names: what stands in them registers itself when they are imported."""

from __future__ import annotations

import importlib
import pkgutil

from quantsr.errors import InputError


def import_files(package: str, suffix: str) -> None:
    """Import the modules of ``quantsr.PACKAGE`` whose names end in ``suffix``.

    Raises:
        InputError: one cannot be imported; the message names its file.
    """
    home = importlib.import_module(f"quantsr.{package}")
    for module in pkgutil.iter_modules(home.__path__):
        if module.name.endswith(suffix):
            try:
                importlib.import_module(f"{home.__name__}.{module.name}")
            except Exception as error:  # whatever a file of the user's own can raise
                file = f"{getattr(module.module_finder, 'path', '')}/{module.name}.py"
                raise InputError(
                    f"{file}: cannot be imported ({type(error).__name__}: {error}); correct or remove it"
                ) from error
