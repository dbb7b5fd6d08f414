"""Files of certain names are imported, so that their classes are registered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from quantsr import basicsr_compat
from quantsr.config import registries
from quantsr.errors import InputError

CASES = [
    ("archs", "own_arch", "ARCH_REGISTRY", "object", registries.networks),
    ("models", "own_model", "MODEL_REGISTRY", "QuantSRModel", registries.models),
    ("models", "own_loss", "LOSS_REGISTRY", "L1Loss", registries.losses),
    ("engine", "own_metric", "METRIC_REGISTRY", "object", registries.metrics),
    ("data", "own_dataset", "DATASET_REGISTRY", "object", registries.dataset_types),
]
TEXT = """
from quantsr.basicsr_compat import L1Loss, {registry}
from quantsr.models.quantsr_model import QuantSRModel

@{registry}.register()
class Own({base}):
    pass
"""


@pytest.mark.parametrize(("package", "file", "registry", "base", "listing"), CASES)
def test_a_file_in_the_right_folder_is_imported_by_its_name(
    package: str,
    file: str,
    registry: str,
    base: str,
    listing: Callable[[], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "Own" not in listing()
    parent = import_module(f"quantsr.{package}")
    objects = getattr(basicsr_compat, registry)
    monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(tmp_path)])
    monkeypatch.setattr(objects, "_obj_map", dict(objects._obj_map))
    monkeypatch.setattr(parent, file, None, raising=False)
    monkeypatch.setitem(
        sys.modules, f"{parent.__name__}.{file}", None
    )  # so that it is removed after the test
    del sys.modules[f"{parent.__name__}.{file}"]
    (tmp_path / f"{file}.py").write_text(TEXT.format(registry=registry, base=base))
    assert "Own" in listing()


def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = import_module("quantsr.archs")
    monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(tmp_path)])
    (tmp_path / "broken_arch.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(
        InputError, match=r"broken_arch\.py: cannot be imported \(ModuleNotFoundError: .*\); correct"
    ):
        registries.networks()
