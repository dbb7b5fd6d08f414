"""A network that no part of the package knows, from training to engines: two files make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

import quantsr
from quantsr import cli
from quantsr.deploy.engines import reference, select
from quantsr.deploy.packed import packing
from tests.conftest import ROOT

NETWORK = ROOT / "tests" / "networks" / "distillation_arch.py"
CHECKPOINT = "experiments/third/models/net_g_latest.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and an option file for two iterations."""
    folder = tmp_path_factory.mktemp("third")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(3)
    for i in range(3):
        small = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        cv2.imwrite(
            str(folder / f"pictures/{i}.png"), cv2.resize(small, (54, 48), interpolation=cv2.INTER_CUBIC)
        )
    train = {"name": "t", "type": "CroppedImageDataset", "dataroot_gt": "pictures", "gt_size": 32}
    options = {
        "name": "third",
        "model_type": "QuantSRModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 1,
        "datasets": {"train": {**train, "batch_size_per_gpu": 2}},
        "network_g": {"type": "SmallDistillation", "num_feat": 16, "upscale": 2},
        "path": {},
        "train": {
            "total_iter": 2,
            "optim_g": {"type": "Adam", "lr": 0.001},
            "scheduler": {"type": "MultiStepRestartLR", "milestones": [1]},
            "pixel_opt": {"type": "L1Loss"},
        },
        "logger": {"save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    (folder / "third.yml").write_text(yaml.safe_dump(options), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The packed network, and the folder of its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        own = ["--import", str(NETWORK)]
        assert cli.main(["train", "-opt", "third.yml", *own]) == 0
        for suffix in (".safetensors", ".onnx"):
            words = ["export", "-m", CHECKPOINT, "-o", f"third{suffix}", "--no-parity", "--calib", "pictures"]
            assert cli.main([*words, *own]) == 0
    return packing.load(folder / "third.safetensors")


@pytest.fixture
def picture(folder: Path) -> np.ndarray:
    return cv2.imread(str(folder / "pictures" / "0.png"))[:23, :31, ::-1].copy()


def test_its_program_is_in_the_file(model):
    kinds = [op.kind for op in model.written.operations]
    assert {"concat", "slice", "sigmoid", "multiply", "mean", "leaky_relu", "prelu"} <= set(kinds)
    assert model.header.format_version == 3
    assert [layer.bits_a for layer in model.layers.values() if layer.name.startswith("body.0.conv")] == [
        4
    ] * 3
    assert model.layers["last.0"].bits_w == 8


def test_the_file_computes_what_the_trained_network_does(model, folder, picture, monkeypatch):
    expected = reference.run(model, picture)
    assert expected.std() > 10
    monkeypatch.chdir(folder)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    # the trained network, whose last layer has 8 bits in the file; and the file as a module
    for name, off in ((CHECKPOINT, 0.2), ("third.safetensors", 0.02)):
        with torch.inference_mode():
            found = (quantsr.load(name)(x)[0].permute(1, 2, 0) * 255).round().clamp(0, 255).numpy()
        difference = np.abs(found - expected)
        assert difference.max() <= 2
        assert (difference > 0).mean() < off


def test_engines_give_the_pictures_of_the_reference(model, picture):
    expected = reference.run(model, picture)
    engine = select.create("onnxruntime", model, model.header.depths[0])
    np.testing.assert_array_equal(engine.run(picture[None])[0], expected)


def test_the_onnx_file_gives_them_too(model, folder, picture):
    session = onnxruntime.InferenceSession(str(folder / "third.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": picture[None]})
    np.testing.assert_array_equal(found[0], reference.run(model, picture))
