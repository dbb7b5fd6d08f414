"""Odd and bad pictures: `quantsr upscale` upscales or reports each in one line, and upscales the
others of the same call."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quantsr import cli
from quantsr.data.images import read_rgb
from quantsr.deploy.packed import packing
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.errors import InputError
from tests.stress.conftest import Budget
from tests.stress.pictures import odd_picture

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore")]

CALL = 25
"""Pictures per call."""
LIMIT_S = 60
"""Seconds after which a call is taken to hang; it takes about one."""
MAX_PIXELS = 4096


@contextmanager
def no_hang() -> Iterator[None]:
    """Raises AssertionError where the body takes too long."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"still running after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "n.safetensors"
    packing.save(random_model(num_feat=16, num_block=1, scale=2, depths=(1,)), path)
    return path


def draw(folder: Path, budget: Budget) -> list[Path]:
    """A folder of odd pictures, with a valid one in the middle."""
    folder.mkdir()
    paths = []
    for index in range(CALL):
        content, suffix = odd_picture(budget.rng)
        paths.append(folder / f"{index:02}{suffix}")
        paths[-1].write_bytes(content)
    good = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    Image.fromarray(good).save(folder / "12good.png")
    return paths


def test_odd_and_bad_pictures(
    budget: Budget, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("QUANTSR_MAX_PIXELS", str(MAX_PIXELS))
    seen: Counter[str] = Counter()
    good: set[bytes] = set()
    for number in budget.rounds():
        folder, out = tmp_path / f"in{number}", tmp_path / f"out{number}"
        paths = draw(folder, budget)
        words = ["upscale", *map(str, paths), str(folder / "12good.png"), "-o", str(out)]
        words += ["--model", str(network), *(["--accept-truncated"] if number % 4 == 0 else [])]
        with no_hang():
            code = cli.main(words)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        written = set(re.findall(r"^\S*/in\d+/(\S+) -> ", captured.out, re.M))
        refused = set(re.findall(r"^error: \S*/(?:in\d+|out\d+)/([^:\s]+): ", captured.out, re.M))
        names = {path.name for path in paths} | {"12good.png"}
        for name in names:
            assert (name in written) != (
                name in refused or f"{Path(name).stem}_x2{Path(name).suffix}" in refused
            ), (
                budget.seed,
                number,
                name,
                captured.out,
            )
        assert len(written) == len(list(out.iterdir())), (budget.seed, number)
        assert code == (1 if len(written) < len(names) else 0)
        good.add((out / "12good_x2.png").read_bytes())
        seen += Counter(upscaled=len(written) - 1, refused=len(names) - len(written))
        for path in paths:
            assert_training_agrees(path, seen, (budget.seed, number))
    assert len(good) == 1
    print(f"pictures: {sum(seen[key] for key in ('upscaled', 'refused'))}, {dict(seen)}")


def assert_training_agrees(path: Path, seen: Counter[str], place: Any) -> None:
    """Training and evaluation also read the picture, or report it in one line."""
    picture, refusal = None, ""
    with no_hang():
        try:
            picture = read_rgb(path)
        except InputError as error:
            refusal = str(error)
    seen["refused in training" if picture is None else "read in training"] += 1
    if picture is None:
        assert str(path) in refusal, place
        assert "\n" not in refusal, place
    else:
        assert picture.dtype == np.uint8, place
        assert picture.ndim == 3, place
        assert picture.shape[2] == 3, place
        assert 0 < picture.shape[0] * picture.shape[1] <= MAX_PIXELS, place
