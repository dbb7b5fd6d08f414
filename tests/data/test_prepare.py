"""`quantsr prepare`: layouts, what is skipped, what is refused."""

from __future__ import annotations

import argparse
import functools
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from quantsr.commands import prepare
from quantsr.data import download
from quantsr.data.images import read_rgb, write_file
from quantsr.data.preparation import starts
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.errors import InputError, WorkError

from .conftest import Maker


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([str(word) for word in words]))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_bicubic_folders_skip_what_is_there(
    make_pictures: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hr, out = make_pictures("hr", [(25, 30), (24, 24)]), tmp_path / "out"
    assert run("bicubic", hr, out, "--scale", 2, 4, "-j", 2) == 0
    assert names(out) == ["X2/p0x2.png", "X2/p1x2.png", "X4/p0x4.png", "X4/p1x4.png"]
    want = imresize_uint8(mod_crop(read_rgb(hr / "p0.png"), 4), 1 / 4)
    np.testing.assert_array_equal(read_rgb(out / "X4/p0x4.png"), want)
    (out / "X2/p0x2.png").write_bytes(b"mine")
    (out / "X4/p1x4.png").unlink()
    assert run("bicubic", hr, out, "--scale", 2, 4, "-j", 1) == 0
    assert "1 written" in capsys.readouterr().out
    assert (out / "X2/p0x2.png").read_bytes() == b"mine"
    run("bicubic", hr, out, "--scale", 2, "-j", 1, "--force")
    assert (out / "X2/p0x2.png").read_bytes() != b"mine"


def test_benchmark_layout(make_pictures: Maker, tmp_path: Path) -> None:
    source, out = make_pictures("source", [(50, 40)], ".bmp"), tmp_path / "Own"
    run("benchmark", source, out, "-j", 1)
    assert names(out) == [
        "HR/p0.png",
        "LR_bicubic/X2/p0x2.png",
        "LR_bicubic/X3/p0x3.png",
        "LR_bicubic/X4/p0x4.png",
    ]
    assert read_rgb(out / "HR/p0.png").shape == (48, 36, 3)
    assert read_rgb(out / "LR_bicubic/X3/p0x3.png").shape == (16, 12, 3)


@pytest.mark.parametrize(
    ("length", "want"), [(10, []), (12, [0]), (13, [0, 1]), (24, [0, 6, 12]), (29, [0, 6, 12, 17])]
)
def test_sub_images_reach_the_border(length: int, want: list[int]) -> None:
    assert starts(length, 12, 6) == want


def test_sub_images_and_their_lr_train_from_lmdb(make_pictures: Maker, tmp_path: Path) -> None:
    from quantsr.data.loader import build_train_loader

    hr = make_pictures("hr", [(50, 41)])
    run(
        "subimages",
        hr,
        tmp_path / "s",
        "--size",
        24,
        "--step",
        12,
        "--scale",
        2,
        "--lq-output",
        tmp_path / "l",
        "-j",
        1,
    )
    assert names(tmp_path / "s") == names(tmp_path / "l")
    assert len(names(tmp_path / "s")) == 4 * 3
    gt = mod_crop(read_rgb(hr / "p0.png"), 2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "s/p0_s006.png"), gt[12:36, 16:40])
    lq = imresize_uint8(gt, 1 / 2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "l/p0_s006.png"), lq[6:18, 8:20])
    for name in "sl":
        run("lmdb", tmp_path / name, tmp_path / f"{name}.lmdb", "-j", 2)
    lines = (tmp_path / "s.lmdb/meta_info.txt").read_text().splitlines()
    assert lines[0] == "p0_s001.png (24,24,3) 1"
    opt = {
        "type": "PairedImageDataset",
        "dataroot_gt": str(tmp_path / "s.lmdb"),
        "dataroot_lq": str(tmp_path / "l.lmdb"),
        "io_backend": {"type": "lmdb"},
        "gt_size": 24,
        "use_hflip": False,
        "use_rot": False,
    }
    batch = next(build_train_loader(opt, 2, 0, 12))
    pictures = {read_rgb(path).tobytes() for path in (tmp_path / "s").iterdir()}
    levels = (batch["gt"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert {picture.tobytes() for picture in levels} == pictures


def test_bad_requests_are_one_line(make_pictures: Maker, tmp_path: Path) -> None:
    hr = make_pictures("hr", [(24, 24)])
    (hr / "a.b.png").write_bytes((hr / "p0.png").read_bytes())
    with pytest.raises(InputError, match="no such folder"):
        run("bicubic", tmp_path / "none", tmp_path / "o")
    with pytest.raises(InputError, match=r"must end in \.lmdb"):
        run("lmdb", hr, tmp_path / "o")
    with pytest.raises(InputError, match="ASCII without dots"):
        run("lmdb", hr, tmp_path / "o.lmdb")
    (hr / "a.b.png").unlink()
    (tmp_path / "o.lmdb").mkdir()
    with pytest.raises(InputError, match="exists already"):
        run("lmdb", hr, tmp_path / "o.lmdb")
    with pytest.raises(InputError, match="no LMDB folder, so it is not replaced"):
        run("lmdb", hr, tmp_path / "o.lmdb", "--force")
    with pytest.raises(InputError, match="multiples of --scale 7"):
        run("subimages", hr, tmp_path / "o", "--scale", 7, "--lq-output", tmp_path / "l")
    with pytest.raises(InputError, match="--lq-output: missing"):
        run("subimages", hr, tmp_path / "o", "--scale", 2)
    with pytest.raises(InputError, match="hr: no picture is at least 26x26; lower --size"):
        run("subimages", hr, tmp_path / "s", "--size", 26)
    for template in ("x", "{}{}"):
        with pytest.raises(InputError, match=r"filename_tmpl: needs one '\{\}'"):
            run("subimages", hr, tmp_path / "s", "--size", 12, "--lq", hr, "--lq-output", tmp_path / "l",
                "--filename-tmpl", template)  # fmt: skip
    with pytest.raises(InputError, match=r"p0{x}\.png: the LR picture of p0\.png is missing"):
        run("subimages", hr, tmp_path / "s", "--size", 12, "--lq", hr, "--lq-output", tmp_path / "l",
            "--filename-tmpl", "{}{x}")  # fmt: skip
    cv2.imwrite(str(hr / "p0.bmp"), np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(InputError, match="has the same name"):
        run("bicubic", hr, tmp_path / "o")


@pytest.mark.parametrize("value", ["x", "0", "-1", "2.5"])
def test_a_number_that_is_none_is_named(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("bicubic", "in", "out", f"--scale={value}")
    assert f"must be a whole number of at least 1, got '{value}'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match=r"a\.png: cannot be written \(Not a directory\)"):
        write_file(tmp_path / "file" / "below" / "a.png", b"")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder
        httpd.shutdown()
        thread.join()


def test_downloads_are_checked_and_unpacked(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = server
    archive = download.ARCHIVES["div2k-valid"]
    with zipfile.ZipFile(folder / archive.file, "w") as content:
        content.writestr("DIV2K_valid_HR/0801.png", b"picture")
    with pytest.raises(WorkError, match="its checksum is not"):
        download.download("div2k-valid", tmp_path / "d", base=base)
    assert names(tmp_path / "d") == []
    md5 = download._md5(folder / archive.file)
    monkeypatch.setitem(download.ARCHIVES, "div2k-valid", download.Archive(archive.file, md5, archive.folder))
    assert download.download("div2k-valid", tmp_path / "d", base=base) == tmp_path / "d/DIV2K_valid_HR"
    assert names(tmp_path / "d") == ["DIV2K_valid_HR/0801.png"]
    with pytest.raises(InputError, match="exists already"):
        download.download("div2k-valid", tmp_path / "d", base=base)
    with pytest.raises(WorkError, match="HTTP 404"):
        download.download("div2k-train", tmp_path / "d", base=base)
    with pytest.raises(WorkError, match="check the network"):
        download.download("div2k-train", tmp_path / "d", base="http://127.0.0.1:9/")


def test_the_list_of_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("download") == 0
    assert "DIV2K_train_LR_bicubic_X4.zip" in capsys.readouterr().out
