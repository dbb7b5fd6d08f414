"""`quantsr prepare`: layouts, skipped files, refused input."""

from __future__ import annotations

import argparse
import functools
import http.server
import subprocess
import sys
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
from quantsr.temporary import folder_beside
from tests.data.conftest import Maker


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([str(word) for word in words]))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_bicubic_skips_existing_files(
    make_pictures: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hr, out = make_pictures("hr", [(25, 30), (24, 24)]), tmp_path / "out"
    assert run("bicubic", hr, out, "--scale", 2, 4, "-j", 2) == 0
    assert names(out) == ["X2/p0x2.png", "X2/p1x2.png", "X4/p0x4.png", "X4/p1x4.png"]
    expected = imresize_uint8(mod_crop(read_rgb(hr / "p0.png"), 4), 1 / 4)
    np.testing.assert_array_equal(read_rgb(out / "X4/p0x4.png"), expected)
    (out / "X2/p0x2.png").write_bytes(b"mine")
    (out / "X4/p1x4.png").unlink()
    assert run("bicubic", hr, out, "--scale", 2, 4, "-j", 1) == 0
    assert "1 written" in capsys.readouterr().out
    assert (out / "X2/p0x2.png").read_bytes() == b"mine"
    run("bicubic", hr, out, "--scale", 2, "-j", 1, "--force")
    assert (out / "X2/p0x2.png").read_bytes() != b"mine"


def test_the_layout_of_a_benchmark_set(make_pictures: Maker, tmp_path: Path) -> None:
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
    ("length", "expected"), [(10, []), (12, [0]), (13, [0, 1]), (24, [0, 6, 12]), (29, [0, 6, 12, 17])]
)
def test_sub_images_reach_the_border(length: int, expected: list[int]) -> None:
    assert starts(length, 12, 6) == expected


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


def test_bad_input_is_one_line(make_pictures: Maker, tmp_path: Path) -> None:
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
def test_a_number_that_cannot_be_parsed_is_named(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("bicubic", "in", "out", f"--scale={value}")
    assert f"must be a whole number of at least 1, got '{value}'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.png: cannot be written \(Not a directory\)"):
        write_file(tmp_path / "file" / "below" / "a.png", b"")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

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


def test_download_without_a_name_lists_the_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("download") == 0
    assert "DIV2K_train_LR_bicubic_X4.zip" in capsys.readouterr().out


KILLED_IN_ZIP = """
import os, signal, sys, zipfile
from pathlib import Path
from quantsr.data import download
name, base, target, md5 = sys.argv[1:]
old = download.ARCHIVES[name]
download.ARCHIVES[name] = download.Archive(old.file, md5, old.folder)
real, count = zipfile.ZipFile._extract_member, []
def extract(self, *args):
    count.append(1)
    if len(count) > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args)
zipfile.ZipFile._extract_member = extract
download.download(name, Path(target), base=base)
"""


def test_a_download_killed_while_it_unpacks_leaves_nothing_under_the_final_name(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = server
    archive = download.ARCHIVES["div2k-valid"]
    with zipfile.ZipFile(folder / archive.file, "w") as content:
        for number in range(9):
            content.writestr(f"DIV2K_valid_HR/080{number}.png", b"picture")
    md5 = download._md5(folder / archive.file)
    words = ["div2k-valid", base, str(tmp_path / "d"), md5]
    done = subprocess.run([sys.executable, "-c", KILLED_IN_ZIP, *words], check=False, capture_output=True)
    assert done.returncode == -9
    assert not (tmp_path / "d" / archive.folder).exists()
    (folder / archive.file).unlink()  # the downloaded archive is enough to resume
    monkeypatch.setitem(download.ARCHIVES, "div2k-valid", download.Archive(archive.file, md5, archive.folder))
    download.download("div2k-valid", tmp_path / "d", base=base)
    assert names(tmp_path / "d") == [f"DIV2K_valid_HR/080{number}.png" for number in range(9)]


def test_a_damaged_archive_is_one_line(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = server
    archive = download.ARCHIVES["div2k-valid"]
    (folder / archive.file).write_bytes(b"no zip file")
    md5 = download._md5(folder / archive.file)
    monkeypatch.setitem(download.ARCHIVES, "div2k-valid", download.Archive(archive.file, md5, archive.folder))
    with pytest.raises(WorkError, match=r"DIV2K_valid_HR\.zip: cannot be unpacked"):
        download.download("div2k-valid", tmp_path / "d", base=base)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
from quantsr.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["lmdb", "bicubic"])
def test_a_failed_write_is_one_line_and_leaves_no_file(
    make_pictures: Maker, tmp_path: Path, what: str
) -> None:
    hr, out = make_pictures("hr", [(80, 80)]), tmp_path / "out" / "o.lmdb"
    words = ["prepare", what, str(hr), str(out), "-j", "1", *(["--scale", "1"] if what == "bicubic" else [])]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot be written" in errors[0]
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == []


def test_names_as_long_as_the_file_system_allows(make_pictures: Maker, tmp_path: Path) -> None:
    hr = make_pictures("hr", [(24, 24)])
    (hr / "p0.png").rename(hr / f"{'n' * 249}.png")
    run("bicubic", hr, tmp_path / "o", "--scale", 2, "-j", 1)
    assert names(tmp_path / "o") == [f"X2/{'n' * 249}x2.png"]
    run("lmdb", hr, tmp_path / f"{'m' * 250}.lmdb", "-j", 1)
    assert (tmp_path / f"{'m' * 250}.lmdb" / "data.mdb").exists()


def test_an_lmdb_is_replaced_and_leftovers_are_removed(make_pictures: Maker, tmp_path: Path) -> None:
    hr, target = make_pictures("hr", [(24, 24)]), tmp_path / "out" / "o.lmdb"
    run("lmdb", hr, target, "-j", 1)
    make_pictures("hr", [(24, 24), (24, 24)])
    with folder_beside(target) as work:
        leftover = work / "made.lmdb"
    leftover.mkdir(parents=True)  # of a killed process
    run("lmdb", hr, target, "-j", 1, "--force")
    assert len((target / "meta_info.txt").read_text().splitlines()) == 2
    assert [path.name for path in target.parent.iterdir()] == ["o.lmdb"]


def test_an_empty_picture_is_made_again(make_pictures: Maker, tmp_path: Path) -> None:
    """A power failure can leave an empty file."""
    hr, out = make_pictures("hr", [(24, 24)]), tmp_path / "out"
    (out / "X2").mkdir(parents=True)
    (out / "X2" / "p0x2.png").touch()
    run("bicubic", hr, out, "--scale", 2, "-j", 1)
    assert read_rgb(out / "X2" / "p0x2.png").shape == (12, 12, 3)
