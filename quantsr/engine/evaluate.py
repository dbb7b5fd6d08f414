"""The only evaluation loop: sets x depths x metrics, for a network or any function that upscales a
picture.

Pictures are uint8 ``(H, W, 3)`` RGB here. The results equal those of BasicSR's ``SRModel``
validation: the network's input is ``uint8 / 255`` in FP32, its output is clamped, rounded and
compared as uint8 BGR by BasicSR's own metrics.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantsr import __version__
from quantsr.archs import contract
from quantsr.archs.modes import eval_mode
from quantsr.config.folders import is_left_out
from quantsr.data.evaluation import build_eval_dataset
from quantsr.data.resize import imresize_uint8
from quantsr.engine.measure import Picture, least_side, measure
from quantsr.engine.results import Record, source_commit
from quantsr.engine.saved_pictures import LeaveOut, Saving, save_outputs, unique_names
from quantsr.engine.selfensemble import self_ensemble
from quantsr.engine.strips import forward_in_strips
from quantsr.errors import InputError, WorkError
from quantsr.hardware import processes
from quantsr.hardware.processes import World

logger = logging.getLogger(__name__)

Values = dict[int | None, dict[str, list[float]]]
"""By depth and metric, a number for each picture."""

Upscale = Callable[[Picture], Picture]
"""Turns a picture ``(h, w, 3)`` into one of ``(h * scale, w * scale, 3)``."""


@dataclass(frozen=True)
class EvalSet:
    """A data set to evaluate on.

    Attributes:
        name: in tables and folders.
        scale: upscaling factor.
        pictures: items ``{"name": str, "lq": Picture, "gt": Picture}``, read on access.
    """

    name: str
    scale: int
    pictures: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Provenance:
    """Attributes that all records of a run share."""

    config_hash: str | None = None
    iteration: int | None = None
    commit: str | None = field(default_factory=source_commit)


def to_tensor(picture: Picture, device: torch.device) -> Tensor:
    """``(H, W, 3)`` uint8 -> ``(1, 3, H, W)`` FP32 in [0, 1], channels-last in memory."""
    values = np.asarray(picture, dtype=np.float32) / np.float32(255.0)
    return torch.from_numpy(values).to(device).permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W)


def to_picture(output: Tensor) -> Picture:
    """``(1, 3, H, W)`` in [0, 1] -> ``(H, W, 3)`` uint8, clamped and rounded as BasicSR's
    ``tensor2img`` does."""
    values = output.squeeze(0).float().clamp(0.0, 1.0).permute(1, 2, 0)  # (H, W, 3)
    return (values.cpu().numpy() * 255.0).round().astype(np.uint8)


def build_sets(
    datasets: Mapping[str, Any],
    scale: int,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    leave_out: LeaveOut | None = None,
) -> list[EvalSet]:
    """The evaluation sets of the options' data sets; a warning names the ``optional`` ones whose
    folders do not exist.

    The header of every picture is read.

    Args:
        datasets: by key.
        scale: upscaling factor.
        metrics: the metrics of the evaluation; pictures that are too small for one of them cannot
            be evaluated.
        leave_out: called with each picture that cannot be evaluated; without it the first one is an
            error.

    Raises:
        InputError: a folder or picture is missing, or cannot be evaluated.
    """
    chosen = [d for d in datasets.values() if not is_left_out(d)]
    if missing := [d.name for d in datasets.values() if is_left_out(d)]:
        logger.warning(
            "not there, and left out: %s; datasets/README.md says where they belong", ", ".join(missing)
        )
    side = least_side(metrics or {})
    return [EvalSet(d.name, scale, build_eval_dataset(d, scale).usable(side, leave_out)) for d in chosen]


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """While entered, eval mode without gradients; the mode of every module is restored
    afterwards."""
    with eval_mode(net), torch.inference_mode():
        yield


def network_upscaler(
    net: nn.Module, depths: Sequence[int | None], *, scale: int, ensemble: bool = False
) -> Callable[[Picture], list[Picture]]:
    """A function that returns the pictures of all ``depths`` from one call of the network, which
    shares computations between them.

    ``depths`` is ``(None,)`` for a network with one depth only.
    """
    device = next(net.parameters()).device
    chosen = tuple(depth for depth in depths if depth is not None)

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        if not chosen:
            return (net(x),)
        return tuple(net(x, depth=chosen))

    def run(picture: Picture) -> list[Picture]:
        x = to_tensor(picture, device)
        step = lambda t: forward_in_strips(net, forward, t, scale)  # noqa: E731
        outputs = self_ensemble(step, x) if ensemble else step(x)
        return [to_picture(output) for output in outputs]

    return run


def _ensemble_pictures(upscale: Upscale) -> Upscale:
    """Self-ensemble of an upscaler of pictures: the mean of eight uint8 pictures, rounded."""

    def run(picture: Picture) -> Picture:
        def step(x: Tensor) -> tuple[Tensor, ...]:
            return (to_tensor(upscale(np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())), x.device),)

        raw = (
            torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).unsqueeze(0)
        )  # (1, 3, H, W) uint8
        return to_picture(self_ensemble(step, raw)[0])

    return run


def evaluate(
    network: nn.Module | Upscale,
    sets: Sequence[EvalSet],
    *,
    metrics: Mapping[str, Mapping[str, Any]],
    name: str,
    depths: Sequence[int] | None = None,
    ensemble: bool = False,
    engine: str = "torch",
    saving: Saving | None = None,
    provenance: Provenance | None = None,
    progress: Callable[[str], None] | None = None,
    leave_out: LeaveOut | None = None,
    world: World | None = None,
) -> list[Record]:
    """Measures ``network`` on every picture of every set.

    Args:
        network: a module from ``(1, 3, h, w)`` to ``(1, 3, h * s, w * s)`` in [0, 1], evaluated in
            FP32 at its device, or a function from picture to picture.
        sets: the evaluation sets.
        metrics: see `measure`.
        name: the network's name in the records.
        depths: the depths of the network to evaluate; None for all in ``network.depths``, or the
            only one. For a function: its depth, which is recorded.
        ensemble: average the eight flips and rotations.
        engine: recorded.
        saving: write the pictures.
        provenance: further attributes of the records.
        progress: called with a line after each picture; its exceptions end the evaluation.
        leave_out: called with each picture that cannot be evaluated, has a metric that is not a
            number, or cannot be written; without it the first one is an error.
        world: processes that share the pictures, each of N evaluating every N-th; all must call
            this, and get the same records.

    Returns:
        One record per set, depth and metric, in this order; none for sets that have no picture
        left.

    Raises:
        InputError: a set without pictures, sizes that do not fit, or a metric that is undefined for
            a picture.
        WorkError: a picture cannot be written.
    """
    provenance, world = provenance or Provenance(), world or World()
    rows: Sequence[int | None]
    if isinstance(network, nn.Module):
        rows = tuple(depths if depths is not None else contract.of(network).depths or (None,))
        mode: contextlib.AbstractContextManager[None] = evaluating(network)
    else:
        rows, mode = tuple(depths or (None,)), contextlib.nullcontext()
        upscale = _ensemble_pictures(network) if ensemble else network
    records = []
    with mode:
        for dataset in sets:
            if isinstance(network, nn.Module):
                run = network_upscaler(network, rows, scale=dataset.scale, ensemble=ensemble)
            else:
                run = lambda picture: [upscale(picture)]  # noqa: E731
            part = functools.partial(
                _evaluate_set, run, dataset, rows, metrics, name, saving, progress, leave_out, world
            )
            values = _gather_values(part, world)
            for depth in rows:
                for metric, numbers in values[depth].items():
                    if not numbers:
                        continue
                    records.append(
                        Record(
                            set=dataset.name,
                            scale=dataset.scale,
                            network=name,
                            depth=depth,
                            metric=metric,
                            value=math.fsum(numbers) / len(numbers),
                            pictures=len(numbers),
                            engine=engine,
                            self_ensemble=ensemble,
                            iteration=provenance.iteration,
                            config_hash=provenance.config_hash,
                            commit=provenance.commit,
                            version=__version__,
                        )
                    )
    return records


def _gather_values(part: Callable[[], Values], world: World) -> Values:
    """The values of all processes, each of which calls ``part`` for its own; an error in one is
    raised in all."""
    if world.size == 1:
        return part()
    own: Values | InputError | WorkError
    try:
        own = part()
    except (InputError, WorkError) as error:
        own = error
    values: Values = {}
    for found in processes.gather(own):
        if isinstance(found, Exception):
            raise found
        for depth, by_metric in found.items():
            for metric, numbers in by_metric.items():
                values.setdefault(depth, {}).setdefault(metric, []).extend(numbers)
    return values


def _evaluate_set(
    run: Callable[[Picture], list[Picture]],
    dataset: EvalSet,
    rows: Sequence[int | None],
    metrics: Mapping[str, Mapping[str, Any]],
    name: str,
    saving: Saving | None,
    progress: Callable[[str], None] | None,
    leave_out: LeaveOut | None,
    world: World,
) -> Values:
    """The values of the pictures that this process evaluates."""
    values: Values = {depth: {m: [] for m in metrics} for depth in rows}
    pictures = dataset.pictures
    names = unique_names([picture_name(pictures, index) for index in range(len(pictures))])
    for index in range(world.rank, len(names), world.size):
        picture = names[index]
        try:
            item = pictures[index]
            outputs = run(item["lq"])
            measured = [_measured(f"{dataset.name}: {picture}", sr, item["gt"], metrics) for sr in outputs]
        # raised by a decoder, the network, for lack of memory, or by a user's metric
        except Exception as error:
            if leave_out is None:
                raise
            leave_out(f"{dataset.name}: {picture}", error)
        else:
            for depth, found in zip(rows, measured, strict=True):
                for metric, value in found.items():
                    values[depth][metric].append(value)
            if saving is not None and (saving.limit is None or index < saving.limit):
                made = dict(zip(rows, outputs, strict=True))
                save_outputs(saving.folder / dataset.name, picture, saving.suffix or name, made, leave_out)
        if progress is not None:
            progress(f"{dataset.name} {picture}")
    if not names:
        raise InputError(f"data set {dataset.name}: holds no pictures; check its folders")
    return values


def _measured(
    what: str, sr: Picture, gt: Picture, metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """`measure`, with the picture's name in its error."""
    try:
        return measure(sr, gt, metrics)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def picture_name(pictures: Sequence[Mapping[str, Any]], index: int) -> str:
    """The name of a picture, where possible without reading it."""
    names = getattr(pictures, "names", None)
    return str(pictures[index]["name"] if names is None else names[index])


def bicubic(
    sets: Sequence[EvalSet],
    *,
    metrics: Mapping[str, Mapping[str, Any]],
    saving: Saving | None = None,
    provenance: Provenance | None = None,
    progress: Callable[[str], None] | None = None,
    leave_out: LeaveOut | None = None,
) -> list[Record]:
    """The baseline: MATLAB's bicubic upscaling of each LR picture."""
    records = []
    for dataset in sets:
        scale = dataset.scale
        records += evaluate(
            lambda picture, scale=scale: imresize_uint8(picture, scale),  # type: ignore[misc]
            [dataset],
            metrics=metrics,
            name="bicubic",
            engine="numpy",
            saving=saving,
            provenance=provenance,
            progress=progress,
            leave_out=leave_out,
        )
    return records
