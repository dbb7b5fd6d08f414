"""From an option file to :class:`Options`."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from quantsr.config.schema import Options


def load_options(
    path: str,
    overrides: Sequence[str] = (),
    force_yml: Sequence[str] = (),
    is_train: bool = True,
    check_paths: bool = True,
) -> Options:
    """Read an option file."""
    with open(path, encoding="utf-8") as file:
        return Options.model_validate(yaml.safe_load(file))
