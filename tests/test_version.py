"""Version and commit, in a checkout, in an installed package and where nothing is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from quantsr import version

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    for function in (version.version, version.commit):
        function.cache_clear()
    yield
    for function in (version.version, version.commit):
        function.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Outside of a checkout, with the file that a build leaves."""
    module = ModuleType("quantsr._version")
    module.__version__ = "7.8.9"  # type: ignore[attr-defined]
    module.__commit_id__ = "g0123456ab"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quantsr._version", module)
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    return module


def test_an_installed_package_says_what_it_was_built_from(installed: ModuleType) -> None:
    assert (version.version(), version.commit()) == ("7.8.9", "0123456ab")
    version.commit.cache_clear()
    installed.__commit_id__ = None  # type: ignore[attr-defined]
    assert version.commit() is None


def test_a_checkout_says_its_present_commit(
    installed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert version.commit() == "0123456ab"  # git fails: there is no commit yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    version.commit.cache_clear()
    found = version.commit()
    assert found is not None
    assert len(found) >= 9
    assert head.startswith(found)


def test_nothing_known_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "quantsr._version", None)  # importing it fails
    monkeypatch.setattr(metadata, "version", unknown)
    monkeypatch.setattr(version, "_CHECKOUT", tmp_path)
    assert (version.version(), version.commit()) == ("0+unknown", None)
    monkeypatch.setattr(metadata, "version", lambda name: f"1.0 of {name}")
    version.version.cache_clear()
    assert version.version() == "1.0 of quantsr"
