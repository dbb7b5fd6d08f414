"""Distillation from a float teacher (``optimize_parameters_kd`` of QuantSR's released code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.archs import contract
from quantsr.errors import InputError


def matched_points(blocks: int, points: int) -> list[int]:
    """Indices of ``points`` blocks spread evenly over ``blocks``, the last one included.

    >>> matched_points(16, 4), matched_points(32, 4)
    ([3, 7, 11, 15], [7, 15, 23, 31])
    """
    if not 1 <= points <= blocks:
        raise ValueError(f"points must be 1..{blocks}, got {points}")
    return [-(-blocks * (k + 1) // points) - 1 for k in range(points)]


def blocks_of(net: nn.Module, role: str) -> Sequence[nn.Module]:
    """The blocks of ``net`` in order.

    Raises:
        InputError: the network keeps them under no name known here.
    """
    if (trunk := contract.of(net).trunk) is not None:
        return trunk
    raise InputError(
        f"train.distill: the {role} ({type(net).__name__}) keeps no blocks in body or layers; "
        "set train.distill.feature_weight to 0"
    )


class FeatureTap:
    """Forward hooks that keep the outputs of chosen blocks.

    Where a block runs several sub-networks together (the depths of stage 2) it returns a list, or
    runs several times; the first output is kept, which is the full network's.
    """

    def __init__(self, blocks: Sequence[nn.Module], indices: Sequence[int]) -> None:
        self._found: dict[int, Tensor] = {}
        self._indices = tuple(indices)
        self._handles = [blocks[i].register_forward_hook(self._keeper(i)) for i in self._indices]

    def _keeper(self, index: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # Streams of several depths, QuantSR-T's with their members.
            while isinstance(output, (tuple, list)):
                output = output[0]
            self._found.setdefault(index, output)

        return keep

    def take(self) -> list[Tensor]:
        """The outputs since the last call, in the order of the blocks; forgets them."""
        found = [self._found[index] for index in self._indices]
        self.forget()
        return found

    def take_run(self) -> dict[int, Tensor]:
        """The outputs since the last call by index of their block; blocks that did not run are
        missing. Forgets them."""
        found = self._found
        self.forget()
        return found

    def forget(self) -> None:
        """Drops the outputs since the last call of `take` or `take_run`."""
        self._found = {}

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """``mean_l || S_l/||S_l||_2 - T_l/||T_l||_2 ||_2`` with ``S = |A_s|^2``, ``T = |A_t|^2``.

    Norms are over whole tensors.

    Args:
        student, teacher: feature maps at matched points, ``(B, C, H, W)`` or ``(B, L, C)``. Where
            the two differ in layout or in number of channels, the mean of the squares over the
            channels is compared instead.

    Returns:
        A scalar in [0, sqrt(2)].

    Raises:
        InputError: they have different numbers of positions.
    """
    terms = []
    for a, b in zip(student, teacher, strict=True):
        s, t = a.float().square(), b.float().square()
        if s.shape != t.shape:
            s, t = _spatial(s), _spatial(t)
        _require_positions(s, t)
        terms.append(torch.linalg.vector_norm(_unit(s) - _unit(t)))
    return torch.stack(terms).mean()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """PAMS's structured knowledge transfer: the mean over positions, pictures and points of
    ``(M_s / ||M_s||_2 - M_t / ||M_t||_2)^2``, ``M`` the channel mean of the squared features.

    ``M`` is one map for each picture, and norms are those of the maps. The weight published with
    it, 1e3, goes with the mean over positions (PAMS, section 3.3).

    Args, Raises: as `feature_loss`.
    """
    terms = []
    for a, b in zip(student, teacher, strict=True):
        s, t = _spatial(a.float().square()), _spatial(b.float().square())  # (B, H * W)
        _require_positions(s, t)
        difference = nn.functional.normalize(s) - nn.functional.normalize(t)
        terms.append(difference.square().mean())
    return torch.stack(terms).mean()


def plain_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """QuantSR+'s SFD: ``mean_l ||F_s - F_t||_2``, norms over whole tensors.

    Args:
        student, teacher: feature maps at matched points, of the same shapes.

    Raises:
        InputError: the shapes differ.
    """
    terms = []
    for a, b in zip(student, teacher, strict=True):
        if a.shape != b.shape:
            raise InputError(
                f"train.distill: features of shapes {tuple(a.shape)} and {tuple(b.shape)} have no difference; feature_loss SFD "
                "needs a teacher of the network's own shape, e.g. network_g with 32 bits"
            )
        terms.append(torch.linalg.vector_norm(a.float() - b.float()))
    return torch.stack(terms).mean()


FEATURE_LOSSES = {"QuantSR": feature_loss, "PAMS": attention_loss, "SFD": plain_loss}
"""By their names in `train.distill.feature_loss`."""


def _require_positions(s: Tensor, t: Tensor) -> None:
    """Raises `InputError` unless both have the same shape."""
    if s.shape != t.shape:
        raise InputError(
            f"train.distill: features of {s.shape[-1]} and {t.shape[-1]} positions cannot be compared, since one network "
            "pads its pictures to whole windows; make gt_size / scale a multiple of them, or set feature_weight to 0"
        )


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny)


def _spatial(x: Tensor) -> Tensor:
    """The channel mean: ``(B, C, H, W)`` or ``(B, L, C)`` -> ``(B, L)`` with ``L = H * W``."""
    return x.mean(1).flatten(1) if x.dim() == 4 else x.mean(-1)


def output_loss(outputs: Sequence[Tensor], weights: Sequence[float], target: Tensor) -> Tensor:
    """Weighted sum over depths of the L1 distance between output and ``target``, (B, 3, H, W)."""
    return torch.stack(
        [w * (out - target).abs().mean() for out, w in zip(outputs, weights, strict=True)]
    ).sum()


class Distillation:
    """Distillation losses between a student and a teacher.

    Args:
        student: the network in training, not wrapped by DDP.
        teacher: the float network, on the student's device; frozen here.
        output_weight: of the L1 distance between the outputs.
        feature_weight: of the loss on features.
        points: how many matched blocks that loss sees; fewer where a network has fewer blocks.
        loss: which loss, a name in `FEATURE_LOSSES`. SFD sees every block that runs and does not
            follow one that is skipped, whatever ``points`` is.

    Raises:
        InputError: SFD, and the networks have different numbers of blocks.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        output_weight: float,
        feature_weight: float,
        points: int,
        loss: str = "QuantSR",
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.output_weight = output_weight
        self.feature_weight = feature_weight
        self.taps: tuple[FeatureTap, FeatureTap] | None = None
        if feature_weight > 0:
            ours, theirs = blocks_of(student, "student"), blocks_of(teacher, "teacher")
            self.loss, self.adjacent = FEATURE_LOSSES[loss], loss == "SFD"
            if self.adjacent and len(ours) != len(theirs):
                raise InputError(
                    f"train.distill: the networks have {len(ours)} and {len(theirs)} blocks; feature_loss SFD needs a teacher of "
                    "as many blocks, e.g. network_g with 32 bits"
                )
            points = len(ours) if self.adjacent else min(points, len(ours), len(theirs))
            self.points = list(
                zip(matched_points(len(ours), points), matched_points(len(theirs), points), strict=True)
            )
            self.taps = (
                FeatureTap(ours, [point for point, _ in self.points]),
                FeatureTap(theirs, [point for _, point in self.points]),
            )

    @torch.no_grad()
    def teacher_output(self, x: Tensor) -> Tensor:
        """The teacher's output for ``x``; call before the student runs.

        Features recorded by earlier forward passes, e.g. of a validation, are dropped.
        """
        for tap in self.taps or ():
            tap.forget()
        return self.teacher(x).float()

    def losses(
        self, outputs: Sequence[Tensor], weights: Sequence[float], target: Tensor
    ) -> dict[str, Tensor]:
        """The weighted terms, by name.

        Args:
            outputs: of the student, one per depth, ``(B, 3, H, W)``.
            weights: of the depths.
            target: result of `teacher_output`.
        """
        terms = {}
        if self.output_weight > 0:
            terms["l_teacher"] = self.output_weight * output_loss(outputs, weights, target)
        if self.taps is not None:
            ours, theirs = (tap.take_run() for tap in self.taps)
            compared = [(ours[i], theirs[j]) for i, j in self.points if self._compares(i, ours)]
            if compared:
                students, teachers = zip(*compared, strict=True)
                terms["l_feature"] = self.feature_weight * self.loss(students, teachers)
        return terms

    def _compares(self, block: int, ran: Mapping[int, Tensor]) -> bool:
        return block in ran and (not self.adjacent or block == 0 or block - 1 in ran)
