"""Folders and files that the options name: those that are absent are reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantsr.config import Options
from quantsr.config.folders import count_pictures

Load = Callable[..., Options]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").write_bytes(b"")
    return tmp_path


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def pair(key: str, **more: str) -> dict[str, Any]:
    return {"name": key, "type": "PairedImageDataset", "dataroot_gt": f"{key}/HR", "dataroot_lq": f"{key}/X2",
            "filename_tmpl": "{}x2"} | more  # fmt: skip


def test_absent_folders_are_listed_one_by_one(
    problems: Callable[..., list[str]], valid: dict[str, Any], here: Path
) -> None:
    pictures(here / "Set5" / "HR", "a.png", "b.png")
    pictures(here / "Set5" / "X2", "ax2.png", "bx2.png")
    valid["datasets"] = {
        "test_1": pair("Set5"),
        "test_2": pair("B100"),
        "train": {"name": "t", "type": "CroppedImageDataset"},
    }
    valid["datasets"]["train"].update(dataroot_gt="absent", gt_size=48)
    found = problems(valid, is_train=False, check_paths=True)
    assert [line.split(" does not exist")[0] for line in found] == [
        "datasets.test_2.dataroot_gt: folder 'B100/HR'",
        "datasets.test_2.dataroot_lq: folder 'B100/X2'",
    ]
    assert all(f"(seen from {here})" in line for line in found)


def test_folders_of_the_other_command_are_not_checked(
    problems: Callable[..., list[str]], valid: dict[str, Any], here: Path
) -> None:
    assert problems(valid, is_train=False, check_paths=True) == []
    found = problems(valid, is_train=True, check_paths=True)
    assert len(found) == 1
    assert found[0].startswith("datasets.train.dataroot_gt: folder 'pictures' does not exist")


def test_empty_folders_and_missing_pairs_are_reported(
    problems: Callable[..., list[str]], valid: dict[str, Any], here: Path
) -> None:
    pictures(here / "empty", "readme.txt")
    pictures(here / "Set5" / "HR", "a.png", "b.png", "c.png")
    pictures(here / "Set5" / "X2", "ax2.png", "b.png")
    valid["datasets"] = {
        "test_1": pair("Set5"),
        "test_2": pair("Set5", name="Empty", dataroot_gt="empty"),
        "test_3": pair("Set5", name="File", dataroot_lq="net.pth"),
    }
    found = problems(valid, is_train=False, check_paths=True)
    assert found[0].startswith(
        "datasets.test_1.dataroot_lq: 2 of 3 pictures lack their pair ('bx2' for 'b.png')"
    )
    assert found[1].startswith("datasets.test_2.dataroot_gt: no pictures in folder 'empty'")
    assert found[2].startswith("datasets.test_3.dataroot_lq: folder 'net.pth' is a file")


def test_incomplete_lmdb_folders_are_reported(
    problems: Callable[..., list[str]], valid: dict[str, Any], here: Path
) -> None:
    for name in ("hr.lmdb", "plain", "bare.lmdb"):
        (here / name).mkdir()
    (here / "hr.lmdb" / "meta_info.txt").write_text("a.png (48,48,3) 1\nb.png (48,48,3) 1\n")
    (here / "hr.lmdb" / "data.mdb").touch()
    lmdb = {"type": "PairedImageDataset", "io_backend": {"type": "lmdb"}}
    valid["datasets"] = {
        "test_1": {**lmdb, "name": "1", "dataroot_gt": "hr.lmdb", "dataroot_lq": "plain"},
        "test_2": {**lmdb, "name": "2", "dataroot_gt": "hr.lmdb", "dataroot_lq": "bare.lmdb"},
    }
    found = problems(valid, is_train=False, check_paths=True)
    assert len(found) == 3
    assert "'plain' must end in '.lmdb'" in found[0]
    assert "'bare.lmdb' has no meta_info.txt" in found[1]
    assert "'bare.lmdb' has no data.mdb" in found[2]


def test_unreadable_lists_of_names_are_reported(
    problems: Callable[..., list[str]], valid: dict[str, Any], here: Path
) -> None:
    pictures(here / "pictures", "a.png")
    (here / "latin.txt").write_bytes("b\xe9.png (4,4,3)\n".encode("latin-1"))
    for name, what in (("latin.txt", "cannot be read as UTF-8 text"), ("gone.txt", "does not exist")):
        (line,) = problems(valid, f"datasets.train.meta_info_file={name}", check_paths=True)
        assert line == f"--set: datasets.train.meta_info_file: '{name}' {what}; correct the path"


def test_absent_checkpoints_are_reported(
    problems: Callable[..., list[str]], valid: dict[str, Any], here: Path
) -> None:
    (here / "folder").mkdir()
    overrides = (
        "path.pretrain_network_g=folder",
        "path.fp_pretrain_network_g=fp.pth",
        "path.resume_state=1.state",
    )
    found = problems(valid, *overrides, is_train=False, check_paths=True)
    assert len(found) == 1
    assert found[0].startswith("--set: path.pretrain_network_g: 'folder' is a folder")
    pictures(here / "pictures", "a.png")
    keys = [line.split(": ")[1] for line in problems(valid, *overrides, is_train=True, check_paths=True)]
    assert keys == ["path.pretrain_network_g", "path.fp_pretrain_network_g", "path.resume_state"]


def test_home_and_environment_variables_are_expanded(
    load: Load, valid: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("PHOTOS", str(here / "photos"))
    pictures(here / "photos", "a.png")
    options = load(
        valid,
        "datasets.train.dataroot_gt=[$PHOTOS, ~/photos]",
        "path.pretrain_network_g=~/net.pth",
        check_paths=True,
    )
    assert options.datasets["train"].dataroot_gt == [str(here / "photos")] * 2
    assert options.path.pretrain_network_g == str(here / "net.pth")


def test_pictures_are_counted(load: Load, valid: dict[str, Any], here: Path) -> None:
    pictures(here / "pictures", "a.png", "b.JPG", "c.webp", "notes.txt")
    (here / "list.txt").write_text("a.png (4,4,3)\n\nb.JPG (4,4,3)\n")
    datasets = load(valid).datasets
    assert count_pictures(datasets["train"]) == 3
    assert count_pictures(datasets["val"]) == 3
    listed = load(valid, "datasets.train.meta_info_file=list.txt").datasets["train"]
    assert count_pictures(listed) == 2
    absent = load(valid, "datasets.train.dataroot_gt=absent").datasets["train"]
    assert count_pictures(absent) is None
