"""Training of quantizers alone, against the float network: 2DQuant's DQC, SPR2Q's rectifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantsr.archs import contract
from quantsr.archs.modes import eval_mode
from quantsr.models.distillation import FeatureTap
from quantsr.quant.gradients import requiring_gradients
from quantsr.quant.layers import quantized_layers
from quantsr.quant.learned_bounds import LearnedBoundsActivation
from quantsr.quant.quantizers import quantizers_of

LEARNING_RATE = 3e-2
"""Of Adam, for the bounds of an input, relative to its step at first.

2DQuant's 0.01 is absolute, for features of about 1; with it the bounds of features of 0 to 255
would hardly move."""

WEIGHT_RATE = 1e-2
"""The same of a weight's step."""

RECTIFIER_RATE = 1e-2
"""The same of the rectifier's factors, relative to the root of the weight's mean square."""

CROP_SIDE, BATCH = 32, 4
"""Height and width of crops of low resolution, and how many an iteration reads."""


def train_bounds(
    student: nn.Module,
    teacher: nn.Module,
    pictures: Sequence[Tensor],
    *,
    iterations: int,
    rectifier: int = 0,
    feature_weight: float = 1.0,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train the quantizers' parameters so that the student gives the float network's pictures.

    Weights and biases stay (2DQuant's DQC), but for what a rectifier adds to the weights. The loss
    is the L1 distance of the outputs and `feature_distance` of the units of both trunks; without
    trunks the former alone. Adam, the learning rate falling to 0 along a cosine.

    Args:
        student: calibrated, in any mode; changed in place.
        teacher: the float network.
        pictures: (3, h, w) in [0, 1] of low resolution, of which crops are taken at random.
        iterations: each on `BATCH` crops.
        rectifier: rank of the matrix that is added to each quantized weight (SPR2Q); 0: none.
        feature_weight: of the units' distance.
        progress: called with the number of iterations so far.
    """
    device = next(teacher.parameters()).device
    features = _Features(student, teacher) if feature_weight else None
    try:
        with (
            requiring_gradients(student, False),
            eval_mode(student),
            eval_mode(teacher),
            _rectified(student, rectifier) as factors,
        ):
            groups = [*_bounds(student), *factors]
            for group in groups:
                for parameter in group["params"]:
                    parameter.requires_grad_(True)
            optimizer = torch.optim.Adam(groups)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
            for done, batch in enumerate(_crops(pictures, iterations), 1):
                x = batch.to(device)
                with torch.no_grad():
                    wanted = teacher(x)
                loss = (student(x) - wanted).abs().mean()
                if features is not None:
                    loss = loss + feature_weight * features.distance()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress(done)
    finally:
        if features is not None:
            features.remove()


def feature_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """``mean_i || f_i / ||f_i||_2 - g_i / ||g_i||_2 ||_2`` over the pictures of a batch (B, ...).

    2DQuant's distance of the features of one block.
    """
    ours, theirs = (F.normalize(x.float().flatten(1), dim=1) for x in (ours, theirs))
    return torch.linalg.vector_norm(ours - theirs, dim=1).mean()


class LowRank(nn.Module):
    """A weight (O, ...) plus the product of two factors, as a parametrization (SPR2Q).

    ``W' = W + B A``, B (O, r) and A (r, I * ...). B is 0 at first, so W' is W.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        self.a = nn.Parameter(first.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The rectified weight, shape of ``weight``."""
        return weight + (self.b @ self.a).view_as(weight)


@contextmanager
def _rectified(net: nn.Module, rank: int) -> Iterator[list[dict[str, Any]]]:
    """Context in which the quantized weights have rectifiers; then these are merged."""
    layers = [layer for layer in quantized_layers(net).values() if layer.weight_quantizer is not None]
    added, groups = [], []
    try:
        for layer in layers if rank else ():
            size = float(layer.weight.detach().square().mean().sqrt())
            low_rank = LowRank(layer.weight.detach(), rank)
            parametrize.register_parametrization(layer, "weight", low_rank)
            added.append(layer)
            # B A has the size of B, since the rows of A have length 1.
            groups.append({"params": [low_rank.b], "lr": RECTIFIER_RATE * size})
            groups.append(
                {"params": [low_rank.a], "lr": RECTIFIER_RATE * float(low_rank.a.detach().abs().mean())}
            )
        yield groups
    finally:
        for layer in added:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _bounds(net: nn.Module) -> list[dict[str, Any]]:
    """The quantizers' parameters, each with its learning rate."""
    groups: list[dict[str, Any]] = []
    for _, quantizer in quantizers_of(net):
        step, rate = float(quantizer.step.detach().abs().mean()), WEIGHT_RATE
        if isinstance(quantizer, LearnedBoundsActivation):  # whose parameters are bounds by intervals
            rate = LEARNING_RATE / quantizer.intervals
        groups += [{"params": [p], "lr": rate * step} for p in quantizer.parameters(recurse=False)]
    return groups


class _Features:
    """The outputs of the units of two trunks of one length, where both have them."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        ours, theirs = contract.of(student).trunk or (), contract.of(teacher).trunk or ()
        self._taps = []
        if len(ours) == len(theirs) > 0:
            self._taps = [FeatureTap(blocks, range(len(blocks))) for blocks in (ours, theirs)]

    def distance(self) -> Tensor:
        """The mean of `feature_distance` over the units, of the last forward passes."""
        if not self._taps:
            return torch.zeros(())
        ours, theirs = (tap.take() for tap in self._taps)
        return torch.stack([feature_distance(a, b) for a, b in zip(ours, theirs, strict=True)]).mean()

    def remove(self) -> None:
        """Undo the hooks."""
        for tap in self._taps:
            tap.remove()


def _crops(pictures: Sequence[Tensor], batches: int) -> Iterator[Tensor]:
    """(BATCH, 3, side, side) of random places, mirrored and turned at random."""
    generator = torch.Generator().manual_seed(0)
    side = min(CROP_SIDE, *(size for picture in pictures for size in picture.shape[1:]))

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    for _ in range(batches):
        found = []
        for _ in range(BATCH):
            picture = pictures[below(len(pictures))]
            top, left = (below(size - side + 1) for size in picture.shape[1:])
            crop = picture[:, top : top + side, left : left + side]
            crop = crop.flip(2) if below(2) else crop
            found.append(crop.rot90(below(4), (1, 2)))
        yield torch.stack(found)
