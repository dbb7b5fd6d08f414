"""``network_g`` and ``scale`` of a test from its checkpoint, where the option file leaves them
out."""

from __future__ import annotations

from typing import Any

from quantsr.config.folders import check_checkpoints
from quantsr.config.layers import note_origins
from quantsr.config.problems import Problems
from quantsr.errors import InputError


def fill_network(options: dict[str, Any], section: Any, problems: Problems) -> None:
    """Complete ``network_g`` and ``scale`` from ``path.pretrain_network_g``, in place, where
    ``network_g`` names no type.

    Keys of ``network_g`` that the options give are kept.

    Args:
        options: in the layout of an option file.
        section: the section ``path``, its references and variables replaced.
        problems: receives what is wrong with the checkpoint.

    Raises:
        OptionsError: the checkpoint does not exist, or has no description of its network; no other
            option can be checked then.
    """
    from quantsr.trained_files.architecture import architecture  # imports torch

    given = options.get("network_g", {})
    name = section.get("pretrain_network_g") if isinstance(section, dict) else None
    if not isinstance(given, dict) or "type" in given or not isinstance(name, str):
        return
    check_checkpoints(section, False, problems)
    problems.raise_if_any()
    try:
        arch = architecture(name)
    except InputError as error:
        problems.add(("path", "pretrain_network_g"), str(error))
        problems.raise_if_any()
        raise
    found: dict[str, Any] = {"network_g": {**arch, **given}}
    if "scale" not in options and "upscale" in arch:
        found["scale"] = arch["upscale"]
    origins = dict(problems.origins)
    note_origins(found, name, problems.origins)
    problems.origins.update(origins)
    options.update(found)
