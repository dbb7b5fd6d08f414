"""Imports of files that register their definitions: files of the package by their names, the user's
files by `--import`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.util import module_from_spec, spec_from_file_location

from quantsr.errors import InputError
from quantsr.paths import expanded


def import_files(package: str, suffix: str) -> None:
    """Import the modules of ``quantsr.PACKAGE`` whose names end in ``suffix``.

    Raises:
        InputError: one cannot be imported; the message names its file.
    """
    parent = importlib.import_module(f"quantsr.{package}")
    for module in pkgutil.iter_modules(parent.__path__):
        if module.name.endswith(suffix):
            try:
                importlib.import_module(f"{parent.__name__}.{module.name}")
            except Exception as error:  # a user's file can raise anything
                file = f"{getattr(module.module_finder, 'path', '')}/{module.name}.py"
                raise InputError(
                    f"{file}: cannot be imported ({type(error).__name__}: {error}); correct or remove it"
                ) from error


def import_named(name: str) -> str:
    """Import a Python file, or a module by its dotted name, so that its definitions are registered;
    returns ``name``.

    Raises:
        InputError: there is no such file or module, or it cannot be imported.
    """
    try:
        if not name.endswith(".py"):
            importlib.import_module(name)
        elif name not in _imported:
            path = expanded(name)
            spec = spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise ImportError("it is no Python file")
            module = module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
            _imported.add(name)
    except Exception as error:  # the file's code can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"--import {name}: cannot be imported ({reason}); correct the file or the name"
        ) from error
    return name


_imported: set[str] = set()
"""Files that `import_named` has run: BasicSR's registries raise on a second registration."""
