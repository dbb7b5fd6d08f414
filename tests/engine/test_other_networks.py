"""Networks other than QuantSR's: trained, checked, tested, loaded and resumed by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import quantsr
from quantsr import cli
from quantsr.trained_files import checkpoint

OWN_NETWORK = """
from torch import nn
from quantsr.basicsr_compat import ARCH_REGISTRY, LOSS_REGISTRY


@ARCH_REGISTRY.register()
class TenLines{number}(nn.Module):
    def __init__(self, *, width=4, upscale=2):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(width, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x):
        return self.last(self.first(x).relu())


@LOSS_REGISTRY.register()
class PowerLoss{number}(nn.Module):
    def __init__(self, exponent, loss_weight=1.0):
        super().__init__()
        self.exponent, self.loss_weight = exponent, loss_weight

    def forward(self, output, target):
        return self.loss_weight * ((output - target).abs() ** self.exponent).mean()
"""

SWINIR = {
    "type": "SwinIR",
    "upscale": 2,
    "img_size": 8,
    "window_size": 4,
    "embed_dim": 12,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "upsampler": "pixelshuffledirect",
}
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
MSRRESNET = {**EDSR, "type": "MSRResNet"}


@pytest.fixture
def commands(make_options: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs ``quantsr COMMAND`` on options of a tiny run of the given network in
    ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    options = make_options().dump()
    options["datasets"]["val"] = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(pictures)}
    metrics = {"psnr": {"type": "calculate_psnr"}}
    options["val"] = {"val_freq": 4, "metrics": metrics, "pbar": False}
    options["logger"] = {"save_checkpoint_freq": 2, "use_tb_logger": False}

    def run(command: str, network: dict[str, Any] | None, *words: str, **changes: Any) -> int:
        chosen = {**options, **changes, "train": {**options["train"], **changes.get("train", {})}}
        if network is not None:
            chosen["network_g"] = network
        else:
            del chosen["network_g"]
        Path("run.yml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
        return cli.main([command, "-opt", "run.yml", *words])

    return run


@pytest.mark.parametrize("network", [EDSR, MSRRESNET, SWINIR], ids=lambda network: str(network["type"]))
def test_networks_of_basicsr_are_trained_tested_and_loaded(
    commands: Any, network: dict[str, Any], capsys: Any
) -> None:
    assert commands("train", network, train={"total_iter": 4}) == 0
    net = "experiments/run/models/net_g_latest.pth"
    stored = checkpoint.load(net)["quantsr"]["arch"]
    assert {key: stored[key] for key in network} == network  # with the defaults of other arguments
    assert len(stored) >= len(network)
    capsys.readouterr()
    for given in (network, None):  # network_g from the option file, and from the checkpoint
        for command in ("check", "test"):
            words = ["--for", "test"] if command == "check" else []
            assert commands(command, given, *words, "--set", f"path.pretrain_network_g={net}") == 0
    assert f"| {network['type']} " in capsys.readouterr().out.replace("float ", "")
    loaded = quantsr.load("run")
    with torch.inference_mode():
        assert loaded(torch.zeros(1, 3, 9, 10)).shape == (1, 3, 18, 20)


def test_another_network_than_that_of_the_checkpoint_is_named(commands: Any, capsys: Any) -> None:
    assert commands("train", EDSR, train={"total_iter": 2}) == 0
    net = "experiments/run/models/net_g_latest.pth"
    words = ("--set", f"path.pretrain_network_g={net}")
    assert commands("test", {**EDSR, "res_scale": 0.5}, *words) == 2
    assert "network_g (res_scale 0.5 instead of 1" in capsys.readouterr().err
    assert commands("test", MSRRESNET, *words) == 2
    assert "(type 'MSRResNet' instead of 'EDSR')" in capsys.readouterr().err


def test_resuming_ends_in_the_same_network(commands: Any) -> None:
    assert commands("train", EDSR, train={"total_iter": 4}) == 0
    whole = checkpoint.load("experiments/run/models/net_g_latest.pth")["params"]
    for path in (
        *Path("experiments/run/training_states").glob("4.state"),
        *Path("experiments").glob("r*/m*/*"),
    ):
        path.unlink()
    assert commands("train", EDSR, "--auto-resume", train={"total_iter": 4}) == 0
    again = checkpoint.load("experiments/run/models/net_g_latest.pth")["params"]
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_a_network_and_a_loss_of_an_imported_file(commands: Any, capsys: Any, tmp_path: Path) -> None:
    number = abs(hash(str(tmp_path))) % 10**9  # a name can be registered only once
    Path("own.py").write_text(OWN_NETWORK.format(number=number), encoding="utf-8")
    network = {"type": f"TenLines{number}", "width": 6}
    losses = {
        "power": {"type": f"PowerLoss{number}", "exponent": 1.5},
        "pix": {"type": "L1Loss", "loss_weight": 0.5},
    }
    own = ("--import", str(tmp_path / "own.py"))
    assert commands("train", network, *own, train={"total_iter": 2, "pixel_opt": None, "losses": losses}) == 0
    log = next(Path("experiments/run/log").iterdir()).read_text(encoding="utf-8")
    assert "l_power" in log
    assert "l_pix" in log
    capsys.readouterr()
    net = "experiments/run/models/net_g_latest.pth"
    assert commands("test", None, *own, "--set", f"path.pretrain_network_g={net}") == 0
    assert f"| float TenLines{number} " in capsys.readouterr().out
    assert quantsr.load("run").last[0].weight.shape == (12, 6, 3, 3)
    wrong = {"power": {"type": f"PowerLoss{number}", "exponend": 1.5, "loss_weight": "much"}}
    assert commands("train", network, *own, train={"total_iter": 2, "pixel_opt": None, "losses": wrong}) == 2
    err = capsys.readouterr().err
    assert (
        f"train.losses.power.exponend: unknown option of PowerLoss{number}; did you mean 'exponent'?" in err
    )
    assert f"train.losses.power.exponent: missing; PowerLoss{number} needs it" in err
    assert "train.losses.power.loss_weight: must be a number" in err


def test_a_file_that_cannot_be_imported_is_one_line(commands: Any, capsys: Any) -> None:
    Path("broken.py").write_text("1 / 0\n", encoding="utf-8")
    assert commands("train", EDSR, "--import", "broken.py") == 2
    assert capsys.readouterr().err.strip() == (
        "error: --import broken.py: cannot be imported (division by zero); correct the file or the name"
    )
    assert commands("train", EDSR, "--import", "no.such.module") == 2
    assert "--import no.such.module: cannot be imported (No module named 'no')" in capsys.readouterr().err
