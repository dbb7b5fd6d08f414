"""The first picture of the README, and the script that makes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.scripts import SCRIPTS, load_script

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "showcase.png"

make_showcase = load_script("make_showcase")


def test_the_readme_shows_it() -> None:
    links = re.findall(r"^!\[.+\]\((\S+)\)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert ROOT / links[0] == PICTURE
    assert PICTURE.stat().st_size < 400_000


def test_it_was_made_with_the_shipped_weights() -> None:
    """After a change of the default network: ``python scripts/make_showcase.py``."""
    name = make_showcase.DEFAULT_MODEL
    expected = f"tEXt{make_showcase.FINGERPRINT}\0{make_showcase.fingerprint(name)}".encode("latin-1")
    assert expected in PICTURE.read_bytes()


def test_its_psnr_is_basicsrs() -> None:
    from quantsr.basicsr_compat import calculate_psnr

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (20, 24, 3), np.uint8)
    result = np.clip(truth + rng.integers(-9, 10, truth.shape), 0, 255).astype(np.uint8)
    expected = calculate_psnr(result[..., ::-1], truth[..., ::-1], 4, test_y_channel=True)
    assert make_showcase.psnr_y(result, truth, 4) == pytest.approx(expected, abs=1e-4)


def test_the_fingerprint_leaves_the_picture_readable() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = np.frombuffer(make_showcase.encode(picture, make_showcase.DEFAULT_MODEL), np.uint8)
    assert (cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] == picture).all()


@pytest.mark.integration
def test_the_script_makes_it_without_torch(tmp_path: Path) -> None:
    """The same picture, except for small differences of an engine on another CPU."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.modules['basicsr'] = None; "
        f"sys.argv = ['make_showcase', '-o', {str(tmp_path / 'showcase.png')!r}]; "
        f"runpy.run_path({str(SCRIPTS / 'make_showcase.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made, shipped = (cv2.imread(str(file)) for file in (tmp_path / "showcase.png", PICTURE))
    assert made.shape == shipped.shape
    assert np.mean(made != shipped) < 0.05
