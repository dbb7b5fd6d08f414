"""A perceptual loss: the distance between features of torchvision's VGG19, of weights in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantsr.basicsr_compat import LOSS_REGISTRY
from quantsr.errors import InputError
from quantsr.trained_files import checkpoint

LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
"""Weights of layers in Real-ESRGAN (Wang et al., ICCVW 2021), before their ReLU."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that VGG was trained on
_REMEDY = (
    "give torchvision's vgg19-dcbb9e9d.pth, which python -c 'import torchvision; "
    "torchvision.models.vgg19(weights=\"IMAGENET1K_V1\")' downloads to torch's folder of checkpoints"
)


@LOSS_REGISTRY.register()
class VGGLoss(nn.Module):
    """Sum over layers of weight times L1 distance between features of output and target.

    Args:
        weights: file of VGG19's state dict, as torchvision has it.
        layers: weight of each convolution's output, by its usual name, such as ``conv3_4``;
            default: `LAYERS`.
        loss_weight: factor.

    Raises:
        InputError: no such file, or one of another network, or no such layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, weights: str, layers: dict[str, float] | None = None, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.layers = dict(LAYERS if layers is None else layers)
        self.loss_weight = loss_weight
        self.features, self.places = _features(self.layers)
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(f"train.losses: VGGLoss.weights: {path}: no such file; {_REMEDY}")
        _load(self.features, checkpoint.load(path), path)
        self.requires_grad_(False)
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] both; the target has no gradient."""
        with torch.no_grad():
            wanted = self._outputs(target)
        found = self._outputs(output)
        total = torch.stack([w * F.l1_loss(found[name], wanted[name]) for name, w in self.layers.items()])
        return self.loss_weight * total.sum()

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        x, found = (x - self.mean) / self.std, {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.places:
                found[self.places[index]] = x
        return found


def _features(layers: Mapping[str, float]) -> tuple[nn.Sequential, dict[int, str]]:
    """VGG19's features up to the deepest of these layers, and the layers' places in it."""
    from torchvision.models.vgg import cfgs, make_layers

    whole = make_layers(cfgs["E"])
    names: dict[str, int] = {}
    block = number = 1
    for index, layer in enumerate(whole):
        if isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 1
        elif isinstance(layer, nn.Conv2d):
            names[f"conv{block}_{number}"] = index
            number += 1
        elif isinstance(layer, nn.ReLU):
            layer.inplace = False  # what a convolution gave is kept
    if wrong := [name for name in layers if name not in names] or ([] if layers else ["none"]):
        raise InputError(
            f"train.losses: VGGLoss.layers: {wrong[0]} is no layer of VGG19; choose from {', '.join(names)}"
        )
    places = {names[name]: name for name in layers}
    return whole[: max(places) + 1], places


def _load(features: nn.Sequential, content: Mapping[str, object], path: Path) -> None:
    wanted = features.state_dict()
    state = {name: content.get(f"features.{name}") for name in wanted}
    if any(not isinstance(x, Tensor) or x.shape != wanted[name].shape for name, x in state.items()):
        raise InputError(f"train.losses: VGGLoss.weights: {path}: is not VGG19's state dict; {_REMEDY}")
    features.load_state_dict(state)
