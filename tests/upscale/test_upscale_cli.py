"""`quantsr upscale` as a user meets it: what it reads, what it never overwrites, what it says, its
exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantsr import Upscaler, cli
from quantsr.deploy.upscale import image_io, tiling
from quantsr.pictures import transparency


@pytest.fixture
def photos(tmp_path: Path, picture) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture(9, 12)).save(folder / "a.png")
    Image.fromarray(picture(9, 12, seed=1)).save(folder / "b.webp", lossless=True)
    (folder / "notes.txt").write_text("no picture")
    return folder


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_one_file_to_one_file(upscale, photos, small, tmp_path) -> None:
    out = tmp_path / "large.png"
    assert upscale(photos / "a.png", "-o", out) == 0
    np.testing.assert_array_equal(_pixels(out), Upscaler(small)(_pixels(photos / "a.png")))


@pytest.mark.parametrize("how", ["folder", "files", "glob"])
def test_folders_files_and_globs(how: str, upscale, photos, tmp_path) -> None:
    words = {
        "folder": [photos],
        "files": [photos / "a.png", photos / "b.webp"],
        "glob": [f"{photos}/[ab].*"],
    }[how]
    assert upscale(*words, "-o", tmp_path / "new" / "folder") == 0
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["a_x4.png", "b_x4.webp"]


def test_depth_and_ensemble_reach_the_upscaler(upscale, photos, small, tmp_path) -> None:
    assert upscale(photos / "a.png", "-o", tmp_path / "o.png", "--depth", 1, "--self-ensemble") == 0
    expected = Upscaler(small, depth=1, self_ensemble=True)(_pixels(photos / "a.png"))
    np.testing.assert_array_equal(_pixels(tmp_path / "o.png"), expected)


def test_a_tile_reaches_the_upscaler(upscale, photos, tmp_path, monkeypatch) -> None:
    """Which does not show in a QuantSR-C's picture."""
    tiles = []
    plan = tiling.plan
    monkeypatch.setattr(tiling, "plan", lambda *a, **options: (tiles.append(a[3]), plan(*a, **options))[1])
    assert upscale(photos / "a.png", "-o", tmp_path / "o.png", "--tile", 7) == 0
    assert tiles == [7]


@pytest.mark.parametrize(("budget", "depth"), [(1e6, 3), (1e-6, 1)])
def test_budget_says_which_depth(budget, depth, upscale, photos, tmp_path, capsys) -> None:
    assert upscale(photos / "a.png", "-o", tmp_path / "o.png", "--budget-ms", budget) == 0
    assert f"depth {depth}" in capsys.readouterr().out


def test_an_unreadable_file_is_reported_and_the_rest_done(upscale, photos, tmp_path, capsys) -> None:
    (photos / "aa.png").write_bytes(b"damaged")
    assert upscale(photos, "-o", tmp_path / "out") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x4.png", "b_x4.webp"]
    said = capsys.readouterr()
    assert "aa.png: is not a picture" in said.out + said.err
    assert "2 of 3 pictures upscaled, 1 failed" in said.out + said.err


def test_a_name_that_is_too_long_is_reported_and_the_rest_done(upscale, photos, tmp_path, capsys) -> None:
    (photos / "a.png").rename(photos / f"{'a' * 250}.png")
    assert upscale(photos, "-o", tmp_path / "out") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b_x4.webp"]
    said = capsys.readouterr()
    assert "_x4.png: cannot be written (File name too long)" in said.out + said.err


def test_a_folder_may_have_a_dot_in_its_name(upscale, photos, tmp_path) -> None:
    (tmp_path / "there.gif").mkdir()
    for folder in ("out.v2", "there.gif"):
        assert upscale(photos / "a.png", "-o", tmp_path / folder) == 0
        assert (tmp_path / folder / "a_x4.png").is_file()


def test_never_overwrites_its_input(upscale, photos, capsys) -> None:
    before = (photos / "a.png").read_bytes()
    for force in ([], ["--force"]):
        assert upscale(photos / "a.png", "-o", photos / "a.png", *force) == 2
        assert "never overwritten" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before


def test_existing_files_stay_without_force(upscale, photos, tmp_path, capsys) -> None:
    out = tmp_path / "o.png"
    out.write_bytes(b"mine")
    assert upscale(photos / "a.png", "-o", out) == 2
    assert "give --force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert upscale(photos / "a.png", "-o", out, "--force") == 0
    assert _pixels(out).shape == (36, 48, 3)


def test_two_results_never_share_a_name(upscale, photos, tmp_path, capsys) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.png").write_bytes((photos / "a.png").read_bytes())
    assert upscale(photos / "a.png", tmp_path / "more", "-o", tmp_path / "out") == 2
    assert "two folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.png"], "nothing.png: names no file"),
        (["{photos}", "-o", "one.png"], "cannot go to one file"),
        (["{photos}/a.png", "-o", "o.png", "--depth", "9"], "depth: 9"),
        (["{photos}/a.png", "-o", "o.gif"], "o.gif: unknown picture type '.gif'; use one of .png"),
        (["{photos}/a.png", "-o", "o.png", "--tile", "0"], "tile: must be at least 1"),
        (["{photos}/a.png", "-o", "o.png", "--threads", "0"], "threads: must be at least 1, got 0"),
        (["{photos}/a.png", "-o", "o.png", "--threads", "-1"], "threads: must be at least 1, got -1"),
        (["{photos}/a.png", "-o", "o.png", "--depth", "1", "--budget-ms", "5"], "leave out --depth"),
    ],
)
def test_bad_usage_is_one_line(words, says, upscale, photos, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.format(photos=photos) for word in words]
    if "-o" not in words:
        words += ["-o", "out"]
    assert upscale(*words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_without_a_network_it_says_how_to_name_one(photos, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("quantsr.trained_files.names.ZOO", tmp_path)
    assert cli.main(["upscale", str(photos / "a.png"), "-o", str(tmp_path / "o.png")]) == 2
    assert "--model FILE" in capsys.readouterr().err


def test_alpha_gray_and_profile_travel_along(upscale, tmp_path, picture) -> None:
    pixels = np.dstack([picture(8, 9), np.arange(72, dtype=np.uint8).reshape(8, 9)])
    Image.fromarray(pixels).save(tmp_path / "rgba.png", icc_profile=b"profile")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(picture(8, 9)[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (
        upscale(*(tmp_path / f"{name}.png" for name in ("rgba", "gray", "deep")), "-o", tmp_path / "out") == 0
    )
    rgba = image_io.read(tmp_path / "out" / "rgba_x4.png")
    assert rgba.icc == b"profile"
    np.testing.assert_array_equal(rgba.alpha, transparency.scale_alpha(pixels[..., 3], 4))
    assert image_io.read(tmp_path / "out" / "gray_x4.png").gray
    assert image_io.read(tmp_path / "out" / "deep_x4.png").rgb.dtype == np.uint16


def test_what_a_type_cannot_keep_is_said(upscale, tmp_path, picture, caplog) -> None:
    Image.fromarray(np.dstack([picture(8, 9), np.zeros((8, 9), np.uint8)])).save(tmp_path / "a.png")
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "o.jpg") == 0
    assert ".jpg files cannot keep transparency" in caplog.text


@pytest.mark.integration
def test_a_process_of_its_own_upscales_a_picture(tmp_path, picture) -> None:
    import subprocess
    import sys

    from quantsr.deploy.packed import packing
    from quantsr.deploy.stand_ins.convolutional import random_model

    packing.save(random_model(), tmp_path / "n.safetensors")
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "quantsr", "upscale", tmp_path / "a.png", "-o", tmp_path / "o.png"]
    subprocess.run([*command, "--model", tmp_path / "n.safetensors"], check=True)
    assert Image.open(tmp_path / "o.png").size == (256, 256)
