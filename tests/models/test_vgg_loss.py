"""The perceptual loss, with random weights in torchvision's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from quantsr.config import registries
from quantsr.config.training import LossOptions
from quantsr.errors import InputError
from quantsr.models.losses import Losses
from quantsr.models.vgg_loss import VGGLoss

SHAPES = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}
"""Of VGG19's first convolutions: outputs and inputs, by their places in torchvision's features."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    state = {f"features.{n}.weight": torch.randn(o, i, 3, 3) * 0.1 for n, (o, i) in SHAPES.items()}
    state |= {f"features.{n}.bias": torch.randn(o) * 0.1 for n, (o, _) in SHAPES.items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path


def test_it_is_the_distance_between_the_layers_outputs(weights) -> None:
    layers = {"conv1_2": 0.5, "conv2_1": 2.0}
    options = LossOptions(type="VGGLoss", weights=str(weights), layers=layers, loss_weight=3)
    losses = Losses({"look": options})
    state = torch.load(weights)
    output, target = torch.rand(2, 3, 12, 10, requires_grad=True), torch.rand(2, 3, 12, 10)

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((x.movedim(1, -1) - mean) / std).movedim(-1, 1)

        def conv(n: int, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, state[f"features.{n}.weight"], state[f"features.{n}.bias"], padding=1)

        second = conv(2, conv(0, x).relu())
        return [second, conv(5, F.max_pool2d(second.relu(), 2))]

    pairs = zip((0.5, 2.0), features(output), features(target), strict=True)
    expected = 3 * sum(w * (a - b).abs().mean() for w, a, b in pairs)
    found = losses(output, target)["look"]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert output.grad is not None
    assert float(output.grad.abs().max()) > 0
    assert not any(parameter.requires_grad for parameter in losses.parameters())


def test_it_is_registered_as_a_loss_of_output_and_target() -> None:
    assert registries.losses()["VGGLoss"] is VGGLoss


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"weights": "absent.pth"},
            r"VGGLoss\.weights: absent\.pth: no such file; give torchvision's vgg19-dcbb9e9d",
        ),
        (
            {"layers": {"conv9_9": 1.0}},
            r"VGGLoss\.layers: conv9_9 is no layer of VGG19; choose from conv1_1, conv1_2",
        ),
        ({}, r"vgg19\.pth: is not VGG19's state dict; give torchvision's"),
    ],
    ids=["absent", "layer", "incomplete"],
)
def test_what_is_wrong_is_said_in_one_line(arguments, line, weights) -> None:
    with pytest.raises(InputError, match=line) as error:
        VGGLoss(**{"weights": str(weights), **arguments})
    assert "\n" not in str(error.value)
