"""`quantsr upscale` on pictures and names as they come: transparency, metadata, odd names, outputs
that fail."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantsr import Upscaler
from quantsr.commands.upscale_files import find_pictures
from quantsr.deploy.upscale import image_io, upscaler
from quantsr.pictures import transparency


def _disc(dtype: type, hidden: int, colour: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(24, 24, 3) colours and (24, 24) alpha of a disc with a soft edge; `hidden` is the colour
    where alpha is 0."""
    y, x = np.mgrid[:24, :24]
    cover = np.clip(8.5 - np.hypot(y - 11.5, x - 11.5), 0, 1)
    top = np.iinfo(dtype).max
    alpha = np.rint(cover * top).astype(dtype)
    rgb = np.where(cover[..., None] > 0, np.array([230, 60, 40]) * (top // 255), hidden).astype(dtype)
    return rgb, alpha


def _write(path: Path, rgb: np.ndarray, alpha: np.ndarray, gray: bool) -> None:
    pixels = np.concatenate([rgb[..., :1] if gray else rgb, alpha[..., None]], 2)
    image_io.write(path, pixels.shape, pixels.dtype, [(0, pixels)])


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_colours_do_not_show_along_edges(dtype: type, gray: bool, upscale, tmp_path) -> None:
    top = np.iinfo(dtype).max
    for name, hidden in (("black", 0), ("white", top)):
        _write(tmp_path / f"{name}.png", *_disc(dtype, hidden), gray)
    words = [tmp_path / "black.png", tmp_path / "white.png", "-o"]
    assert upscale(*words, tmp_path / "out") == 0
    black, white = (image_io.read(tmp_path / "out" / f"{name}_x4.png") for name in ("black", "white"))
    np.testing.assert_array_equal(black.rgb, white.rgb)
    np.testing.assert_array_equal(black.alpha, transparency.scale_alpha(_disc(dtype, 0)[1], 4))
    assert black.gray == gray
    assert upscale(*words, tmp_path / "kept", "--keep-hidden-colour") == 0
    black, white = (image_io.read(tmp_path / "kept" / f"{name}_x4.png") for name in ("black", "white"))
    assert not np.array_equal(black.rgb, white.rgb)


def test_opaque_pictures_are_what_the_upscaler_gives(upscale, small, picture, tmp_path) -> None:
    """Also those with an alpha that is opaque everywhere."""
    rgb = picture(9, 8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([rgb, np.full((9, 8), 255, np.uint8)])).save(tmp_path / "rgba.png")
    assert upscale(tmp_path / "rgb.png", tmp_path / "rgba.png", "-o", tmp_path / "out") == 0
    expected = io.BytesIO()
    Image.fromarray(Upscaler(small)(rgb)).save(expected, "PNG")
    assert (tmp_path / "out" / "rgb_x4.png").read_bytes() == expected.getvalue()
    np.testing.assert_array_equal(image_io.read(tmp_path / "out" / "rgba_x4.png").rgb, Upscaler(small)(rgb))


def test_files_without_transparency_show_white(upscale, small, tmp_path, caplog) -> None:
    rgb, alpha = _disc(np.uint8, 0)
    _write(tmp_path / "a.png", rgb, alpha, False)
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "a.bmp") == 0
    pixels = image_io.read(tmp_path / "a.bmp").rgb
    assert (pixels[:8] == 255).all()
    large = Upscaler(small)(transparency.fill_hidden(rgb, alpha))
    np.testing.assert_array_equal(pixels, transparency.on_white(large, transparency.scale_alpha(alpha, 4)))
    assert "put on white" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_date_and_resolution_travel_along(suffix: str, upscale, picture, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0132], exif[0x0112] = "2020:01:01 00:00:00", 6
    Image.fromarray(picture(8, 9)).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    assert upscale(tmp_path / "a.jpg", "-o", tmp_path / f"o{suffix}") == 0
    found = image_io.read(tmp_path / f"o{suffix}")
    assert found.rgb.shape == (36, 32, 3)  # turned, and not again
    kept = Image.Exif()
    kept.load(found.exif)
    assert kept[0x0132] == "2020:01:01 00:00:00"
    with Image.open(tmp_path / f"o{suffix}") as image:
        dpi = image.info.get("dpi") or [image.getexif()[0x011A]]
        assert round(dpi[0]) == 300


def test_what_is_lost_is_said(upscale, picture, tmp_path, caplog) -> None:
    first = Image.fromarray(picture(8, 9))
    exif = Image.Exif()
    exif[0x0132] = "2020:01:01 00:00:00"
    first.save(tmp_path / "a.png", save_all=True, append_images=[first.rotate(180)], exif=exif)
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "o.bmp") == 0
    assert "a.png: holds 2 pictures; only the first is used" in caplog.text
    assert "a.png: .bmp files cannot keep EXIF" in caplog.text


def test_truncated_pictures_are_refused_or_accepted(upscale, picture, tmp_path, capsys, caplog) -> None:
    whole = io.BytesIO()
    Image.fromarray(picture(40, 30)).save(whole, "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) * 3 // 4])
    assert upscale(tmp_path / "a.jpg", "-o", tmp_path / "o.png") == 1
    assert "--accept-truncated upscales a truncated one" in capsys.readouterr().out
    assert upscale(tmp_path / "a.jpg", "-o", tmp_path / "o.png", "--accept-truncated") == 0
    assert "a.jpg: is truncated or damaged" in caplog.text
    assert image_io.read(tmp_path / "o.png").rgb[:16].any()


def test_limits_are_known_before_the_work(upscale, picture, tmp_path, capsys, monkeypatch) -> None:
    Image.fromarray(picture(8, 9)).save(tmp_path / "a.png")
    Image.fromarray(picture(1, 4096)).save(tmp_path / "b.webp", lossless=True)
    monkeypatch.setattr(upscaler.Upscaler, "bands", lambda *_, **__: pytest.fail("work was done"))
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "o.png", "--max-pixels", 71) == 1
    assert "a.png: has more than 71 pixels; raise the limit" in capsys.readouterr().out
    assert upscale(tmp_path / "b.webp", "-o", tmp_path / "o") == 1
    assert "16384x4 is more than the 16383 pixels of a .webp file; write .png" in capsys.readouterr().out
    assert upscale(tmp_path / "a.png", "-o", tmp_path / f"{'n' * 300}.png") == 1
    assert "cannot be written (File name too long)" in capsys.readouterr().out
    for words in (["--max-pixels", "0"], ["--max-pixels", "many"]):
        with pytest.raises(SystemExit, match="2"):
            upscale(tmp_path / "a.png", "-o", tmp_path / "o.png", *words)


def test_memory_that_is_not_there_costs_one_picture(upscale, picture, tmp_path, capsys, monkeypatch) -> None:
    for name in ("a", "b"):
        Image.fromarray(picture(8, 9)).save(tmp_path / f"{name}.png")
    read = image_io.read

    def fail(path: Path, **options):
        if path.name == "a.png":
            raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(image_io, "read", fail)
    assert upscale(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out") == 1
    assert "a.png: needs more memory than there is" in capsys.readouterr().out
    assert (tmp_path / "out" / "b_x4.png").is_file()


NAMES = (
    "b[0].png",
    "-dash.png",
    "~tilde.png",
    "a\nb.png",
    "caf\udce9.png",
    "\x1b[31m.png",
    "\u65e5.png",
    "*.png",
)


def test_names_of_any_spelling(upscale, picture, tmp_path, capsys, monkeypatch) -> None:
    folder = tmp_path / "in[1]"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(picture(8, 9)).save(folder / name)
    (folder / "._b[0].png").write_bytes(b"\0\5\x16\7")
    expected = sorted(f"{name[:-4]}_x4.png" for name in NAMES)
    assert upscale(folder, "-o", tmp_path / "whole") == 0
    assert sorted(os.listdir(tmp_path / "whole")) == expected
    assert len(capsys.readouterr().out.splitlines()) == len(NAMES)
    assert upscale(f"{folder}/*.png", "-o", tmp_path / "glob") == 0
    # a name that is there is no pattern
    assert sorted(os.listdir(tmp_path / "glob")) == ["*_x4.png"]
    monkeypatch.chdir(folder)
    assert upscale(*NAMES[2:], "b[[]?].png", "./-dash.png", "-o", tmp_path / "single") == 0
    assert sorted(os.listdir(tmp_path / "single")) == expected
    assert find_pictures([f"{folder}/[ab]*.png"]) == [folder / "a\nb.png", folder / "b[0].png"]
    assert find_pictures(["b[0]*"]) == [Path("b[0].png")]


class _Output(io.TextIOWrapper):
    """A stream to a reader that has gone."""

    def __init__(self, error: Exception, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.error, self.lines = error, 0

    def write(self, text: str) -> int:
        self.lines += 1
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), None])
def test_output_that_fails_ends_no_batch(error, upscale, picture, tmp_path, monkeypatch) -> None:
    for name in ("a", "b"):
        Image.fromarray(picture(8, 9)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(sys, "stdout", _Output(error, "utf-8") if error else None)
    assert upscale(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a_x4.png", "b_x4.png"]
    (tmp_path / "c.png").write_bytes(b"")
    assert upscale(tmp_path / "c.png", tmp_path / "b.png", "-o", tmp_path / "out", "--force") == 1


def test_a_terminal_of_ascii(upscale, picture, tmp_path, monkeypatch) -> None:
    Image.fromarray(picture(8, 9)).save(tmp_path / "\u65e5\u672c.png")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert upscale(tmp_path / "\u65e5\u672c.png", "-o", tmp_path / "out") == 0
    assert b"\\u65e5\\u672c.png -> " in stream.buffer.getvalue()


@pytest.mark.integration
@pytest.mark.parametrize("closed", ["1>&-", "1>&- 2>&- 0<&-", "1>/dev/full", "| true"])
def test_closed_streams_in_a_process_of_its_own(closed, network_file, picture, tmp_path) -> None:
    import shlex
    import subprocess

    (tmp_path / "in").mkdir()
    for index in range(3):
        Image.fromarray(picture(8, 9)).save(tmp_path / "in" / f"{index}.png")
    words = [sys.executable, "-m", "quantsr", "upscale", tmp_path / "in", "-o", tmp_path / "out"]
    words += ["--model", network_file, "--engine", "openvino"]  # `auto` logs why it is not native
    line = shlex.join(map(str, words))
    done = subprocess.run(
        ["bash", "-c", f"{line} {closed}; exit ${{PIPESTATUS[0]}}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    whole = [np.asarray(Image.open(path)).shape for path in (tmp_path / "out").iterdir()]
    assert whole == [(32, 36, 3)] * 3
