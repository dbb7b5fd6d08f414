"""Evaluation sets of every kind: order, sizes, LR from file or made."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from quantsr.data.evaluation import build_eval_dataset
from quantsr.data.images import read_rgb
from quantsr.data.mini import make_mini, mini_folder
from quantsr.data.preparation import make_bicubic, make_lmdb
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.errors import InputError
from tests.data.conftest import Maker


def test_lr_is_made_where_there_is_none(make_pictures: Maker) -> None:
    folder = make_pictures("hr", [(31, 29), (24, 24)])
    items = list(
        build_eval_dataset({"type": "PairedImageDataset", "name": "own", "dataroot_gt": str(folder)}, 3)
    )
    assert [item["name"] for item in items] == ["p0", "p1"]
    expected = mod_crop(read_rgb(folder / "p0.png"), 3)
    np.testing.assert_array_equal(items[0]["gt"], expected)
    np.testing.assert_array_equal(items[0]["lq"], imresize_uint8(expected, 1 / 3))
    assert items[0]["gt"].flags.c_contiguous


def test_files_and_lmdb_give_the_same(make_pictures: Maker, tmp_path: Path) -> None:
    folder = make_pictures("hr", [(31, 29), (24, 24)])
    make_bicubic(folder, tmp_path / "lr", [2], jobs=1, force=False)
    make_lmdb(folder, tmp_path / "hr.lmdb", strip="", compression=1, jobs=1, force=False)
    make_lmdb(tmp_path / "lr/X2", tmp_path / "lr.lmdb", strip="x2", compression=1, jobs=1, force=False)
    base = {"type": "PairedImageDataset", "name": "own"}
    files = build_eval_dataset(
        {**base, "dataroot_gt": str(folder), "dataroot_lq": str(tmp_path / "lr/X2"), "filename_tmpl": "{}x2"},
        2,
    )
    lmdb = build_eval_dataset(
        {
            **base,
            "dataroot_gt": str(tmp_path / "hr.lmdb"),
            "dataroot_lq": str(tmp_path / "lr.lmdb"),
            "io_backend": {"type": "lmdb"},
        },
        2,
    )
    assert len(files) == len(lmdb) == 2
    for one, other in zip(files, lmdb, strict=True):
        assert one["name"] == other["name"]
        assert one["gt"].shape[0] == 2 * one["lq"].shape[0]
        np.testing.assert_array_equal(one["gt"], other["gt"])
        np.testing.assert_array_equal(one["lq"], other["lq"])


def test_a_list_of_names_selects_pictures(make_pictures: Maker, tmp_path: Path) -> None:
    folder = make_pictures("hr", [(24, 24)] * 3)
    names = tmp_path / "names.txt"
    opt = {"type": "PairedImageDataset", "dataroot_gt": str(folder), "meta_info_file": str(names)}
    names.write_text("p2.png (24,24,3)\np0.png (24,24,3)\n")
    assert [item["name"] for item in build_eval_dataset(opt, 2)] == ["p2", "p0"]
    names.write_text("p3.png (24,24,3)\n")
    with pytest.raises(InputError, match=r"names\.txt names .*p3\.png, which is not there"):
        build_eval_dataset(opt, 2)
    names.write_bytes(b"p\xe9.png\n")
    with pytest.raises(InputError, match=r"names\.txt cannot be read \(not UTF-8 text\)"):
        build_eval_dataset(opt, 2)


@pytest.mark.parametrize("content", [None, b"garbage" * 1000])
def test_a_damaged_lmdb_is_named(tmp_path: Path, content: bytes | None) -> None:
    for name in ("hr.lmdb", "lr.lmdb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta_info.txt").write_text("a.png (48,48,3) 1\n")
        if content is not None:
            (tmp_path / name / "data.mdb").write_bytes(content)
    opt = {"type": "PairedImageDataset", "io_backend": {"type": "lmdb"}}
    folders = {"dataroot_gt": str(tmp_path / "hr.lmdb"), "dataroot_lq": str(tmp_path / "lr.lmdb")}
    with pytest.raises(InputError, match=r"hr\.lmdb: cannot be read .*; make it again with `quantsr prepare"):
        build_eval_dataset({**opt, **folders}, 2)[0]


def test_a_pair_that_does_not_fit_is_named(make_pictures: Maker) -> None:
    hr, lr = make_pictures("hr", [(40, 40)]), make_pictures("lr", [(10, 10)])
    dataset = build_eval_dataset(
        {"type": "PairedImageDataset", "dataroot_gt": str(hr), "dataroot_lq": str(lr)}, 2
    )
    with pytest.raises(InputError, match=r"p0\.png: 40x40 does not fit its LR picture of 10x10 at scale 2"):
        dataset[0]


def test_absent_folders_and_partners_are_named(make_pictures: Maker, tmp_path: Path) -> None:
    hr = make_pictures("hr", [(40, 40)])
    with pytest.raises(InputError, match="no such folder"):
        build_eval_dataset({"type": "PairedImageDataset", "dataroot_gt": str(tmp_path / "none")}, 2)
    with pytest.raises(InputError, match=r"p0x2\.png: the LR picture of p0\.png is missing"):
        build_eval_dataset(
            {
                "type": "PairedImageDataset",
                "dataroot_gt": str(hr),
                "dataroot_lq": str(hr),
                "filename_tmpl": "{}x2",
            },
            2,
        )


def test_scikit_images_three_photographs() -> None:
    pytest.importorskip("skimage")
    items = list(build_eval_dataset({"type": "SkimageDataset", "name": "skimage"}, 4))
    assert [(item["name"], item["lq"].shape) for item in items] == [
        ("astronaut", (128, 128, 3)),
        ("coffee", (100, 150, 3)),
        ("chelsea", (75, 112, 3)),
    ]
    assert items[1]["gt"][0, 0].tolist() == [21, 13, 8]  # red first


def test_the_mini_set_is_small_lossless_and_as_its_script_makes_it(tmp_path: Path) -> None:
    paths = sorted(mini_folder().glob("*.webp"))
    assert len(paths) == 9
    assert sum(path.stat().st_size for path in paths) <= 4_000_000
    assert all(b"VP8L" in path.read_bytes()[:16] for path in paths)
    assert all(read_rgb(path).shape in {(360, 640, 3), (426, 640, 3)} for path in paths)
    source = tmp_path / "source"
    source.mkdir()
    img = np.random.default_rng(0).integers(0, 256, (31, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(source / "budgie_a.png"), img)
    cv2.imwrite(str(source / "other.png"), img)
    make_mini(source, tmp_path / "mini")
    assert [path.name for path in (tmp_path / "mini").iterdir()] == ["a.webp"]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "mini/a.webp")), imresize_uint8(img[:30], 1 / 3))


@pytest.mark.parametrize("name", ["Set5", "Set14", "B100"])
def test_the_benchmark_sets_fit(data_root: Path, name: str) -> None:
    root = data_root / "benchmark" / name
    opt = {
        "type": "PairedImageDataset",
        "name": name,
        "dataroot_gt": str(root / "HR"),
        "dataroot_lq": str(root / "LR_bicubic/X4"),
        "filename_tmpl": "{}x4",
    }
    dataset = build_eval_dataset(opt, 4)
    assert len(dataset) == {"Set5": 5, "Set14": 14, "B100": 100}[name]
    assert dataset[1]["gt"].shape[0] == 4 * dataset[1]["lq"].shape[0]
