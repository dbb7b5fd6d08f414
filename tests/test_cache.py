"""Compiled code is cached in a folder where only this user can write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from quantsr import cache


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored after the test
    cache.set_compile_cache.cache_clear()


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_the_folder_is_private_to_this_user(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "quantsr" / "torchinductor"
    folder.mkdir(parents=True, mode=0o755)
    cache.set_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert (mode(folder), mode(folder.parent)) == (0o700, 0o700)


def test_a_folder_of_the_users_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    cache.set_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"


@pytest.mark.parametrize("how", ["foreign", "link", "file"])
def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = tmp_path / "cache" / "quantsr" / "torchinductor"
    folder.parent.mkdir(parents=True)
    if how == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif how == "file":
        folder.touch()
    else:
        monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    cache.set_compile_cache()
    used = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert used not in (folder, folder.resolve())
    assert mode(used) == 0o700
