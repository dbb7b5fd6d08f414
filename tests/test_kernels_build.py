"""setup.py, where the kernels cannot be compiled: the package is installed without them, one line
says why, and upscaling works."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import setuptools

from quantsr import Upscaler
from quantsr.deploy.native import library
from quantsr.deploy.stand_ins.convolutional import random_model
from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.py needs, without compiled kernels."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "quantsr" / "deploy" / "native", tmp_path / "quantsr" / "deploy" / "native")
    shutil.copy(ROOT / "quantsr" / "__init__.py", tmp_path / "quantsr")
    for file in (tmp_path / "quantsr" / "deploy" / "native").glob("kernels.*[!h]"):
        file.unlink()
    return tmp_path


def build(checkout: Path, arguments: list[str], **variables: str) -> list[str]:
    """Lines of a build that must not fail."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(checkout.rglob("kernels.*.so"))
    return [line for line in (done.stdout + done.stderr).splitlines() if "quantsr is installed" in line]


def test_a_compiler_that_fails_leaves_out_the_kernels_and_one_line_says_so(checkout: Path) -> None:
    (line,) = build(checkout, ["setup.py", "-q", "build_ext", "--inplace"], CC="false")
    assert "quantsr is installed without the kernels of its native engine: they could not be compiled" in line


def test_without_a_compiler_one_line_says_so(checkout: Path) -> None:
    (line,) = build(checkout, ["setup.py", "-q", "build_ext", "--inplace"], CC="no-such-compiler")
    assert "without the kernels of its native engine: they could not be compiled" in line


def test_msvc_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    command = given["cmdclass"]["build_ext"](setuptools.Distribution())
    command.compiler = SimpleNamespace(compiler_type="msvc")  # nothing that could compile
    said: list[str] = []
    monkeypatch.setattr(command, "warn", said.append)
    command.build_extension(given["ext_modules"][0])
    (line,) = said
    assert line.endswith("MSVC has neither POSIX threads nor GCC's vector types")


def test_pictures_are_upscaled_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(library, "load", lambda: None)
    model = random_model(num_feat=16, num_block=2, depths=(2,))
    upscaler = Upscaler(model)
    assert upscaler.engine != "native"
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    expected = Upscaler(model, "torch")(picture)
    assert np.abs(upscaler(picture).astype(int) - expected).max() <= 1
