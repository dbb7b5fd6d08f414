"""The only evaluation loop: sets x depths x metrics, for a network or for anything that upscales a picture.

Pictures are uint8 ``(H, W, 3)`` RGB here. The numbers are those of BasicSR's ``SRModel`` validation: the network sees
``uint8 / 255`` in FP32, its output is clamped, rounded and compared as uint8 BGR by BasicSR's own metrics.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantsr import __version__
from quantsr.archs import contract
from quantsr.basicsr_compat import METRIC_REGISTRY
from quantsr.config.folders import is_left_out
from quantsr.data.evaluation import build_eval_dataset
from quantsr.data.resize import imresize_uint8
from quantsr.engine.results import Record, source_commit
from quantsr.engine.selfensemble import self_ensemble
from quantsr.engine.strips import forward_in_strips
from quantsr.errors import InputError, WorkError

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
"""uint8 ``(H, W, 3)``, RGB."""

Upscale = Callable[[Picture], Picture]
"""Turns a picture ``(h, w, 3)`` into one of ``(h * scale, w * scale, 3)``."""


@dataclass(frozen=True)
class EvalSet:
    """A data set to evaluate on.

    Attributes:
        name: in tables and folders.
        scale: upscaling factor.
        pictures: items ``{"name": str, "lq": Picture, "gt": Picture}``, read when asked for.
    """

    name: str
    scale: int
    pictures: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Saving:
    """Where and how many upscaled pictures are written: ``folder/SET/NAME_SUFFIX.png``."""

    folder: Path
    suffix: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class Provenance:
    """What every record of a run carries beside its number."""

    config_hash: str | None = None
    iteration: int | None = None
    commit: str | None = field(default_factory=source_commit)


def to_tensor(picture: Picture, device: torch.device) -> Tensor:
    """``(H, W, 3)`` uint8 -> ``(1, 3, H, W)`` FP32 in [0, 1], channels-last in memory."""
    values = np.asarray(picture, dtype=np.float32) / np.float32(255.0)
    return torch.from_numpy(values).to(device).permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W)


def to_picture(output: Tensor) -> Picture:
    """``(1, 3, H, W)`` in [0, 1] -> ``(H, W, 3)`` uint8, clamped and rounded as BasicSR's ``tensor2img`` does."""
    values = output.squeeze(0).float().clamp(0.0, 1.0).permute(1, 2, 0)  # (H, W, 3)
    return (values.cpu().numpy() * 255.0).round().astype(np.uint8)


def build_sets(datasets: Mapping[str, Any], scale: int) -> list[EvalSet]:
    """The evaluation sets of the options' data sets; one line of the log names the ``optional`` ones that are not there."""
    chosen = [d for d in datasets.values() if not is_left_out(d)]
    if missing := [d.name for d in datasets.values() if is_left_out(d)]:
        logger.warning(
            "not there, and left out: %s; datasets/README.md says where they belong", ", ".join(missing)
        )
    return [EvalSet(d.name, scale, build_eval_dataset(d, scale)) for d in chosen]


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; the former mode of every module after."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def network_upscaler(
    net: nn.Module, depths: Sequence[int | None], *, scale: int, ensemble: bool = False
) -> Callable[[Picture], list[Picture]]:
    """A function that gives the pictures of all ``depths`` at once, sharing what the network can share.

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


def measure(sr: Picture, gt: Picture, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Each metric of one picture pair, by BasicSR's function on uint8 BGR.

    Args:
        metrics: name -> ``{"type": registered name, **arguments}``; ``better`` is not an argument.

    Raises:
        InputError: the pictures differ in size.
    """
    if sr.shape != gt.shape:
        raise InputError(
            f"upscaled picture is {sr.shape[1]}x{sr.shape[0]}, ground truth {gt.shape[1]}x{gt.shape[0]}; "
            "check scale and the LR folder"
        )
    pair = {"img": np.ascontiguousarray(sr[..., ::-1]), "img2": np.ascontiguousarray(gt[..., ::-1])}
    found = {}
    for name, options in metrics.items():
        arguments = {key: value for key, value in options.items() if key not in ("type", "better")}
        found[name] = float(METRIC_REGISTRY.get(options["type"])(**pair, **arguments))
    return found


def save_picture(path: Path, picture: Picture) -> None:
    """Writes a PNG.

    Raises:
        WorkError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1])):
        raise WorkError(f"{path}: the picture cannot be written; check the folder and free space")


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
) -> list[Record]:
    """Measures ``network`` on every picture of every set.

    Args:
        network: a module from ``(1, 3, h, w)`` to ``(1, 3, h * s, w * s)`` in [0, 1], evaluated in FP32 at its device,
            or a function from picture to picture.
        sets: what to evaluate on.
        metrics: see `measure`.
        name: the network's name in the records.
        depths: which depths of the network; None is all in ``network.depths``, or the only one. Of a function: the one
            that it runs, to be recorded.
        ensemble: average the eight flips and rotations.
        engine: recorded.
        saving: write the pictures.
        provenance: what the records carry beside.
        progress: called with a line after each picture; what it raises ends the evaluation.

    Returns:
        One record per set, depth and metric, in this order.

    Raises:
        InputError: a set without pictures, or sizes that do not fit.
        WorkError: a picture cannot be written.
    """
    provenance = provenance or Provenance()
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
            values = _evaluate_set(run, dataset, rows, metrics, name, saving, progress)
            for depth in rows:
                for metric, numbers in values[depth].items():
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


def _evaluate_set(
    run: Callable[[Picture], list[Picture]],
    dataset: EvalSet,
    rows: Sequence[int | None],
    metrics: Mapping[str, Mapping[str, Any]],
    name: str,
    saving: Saving | None,
    progress: Callable[[str], None] | None,
) -> dict[int | None, dict[str, list[float]]]:
    """Per depth and metric the values of all pictures."""
    values: dict[int | None, dict[str, list[float]]] = {depth: {m: [] for m in metrics} for depth in rows}
    for index in range(len(dataset.pictures)):
        item = dataset.pictures[index]
        for depth, sr in zip(rows, run(item["lq"]), strict=True):
            for metric, value in measure(sr, item["gt"], metrics).items():
                values[depth][metric].append(value)
            if saving is not None and (saving.limit is None or index < saving.limit):
                parts = [item["name"], saving.suffix or name, "" if depth is None else f"depth{depth}"]
                stem = "_".join(part for part in parts if part).replace("/", "-").replace(" ", "-")
                save_picture(saving.folder / dataset.name / f"{stem}.png", sr)
        if progress is not None:
            progress(f"{dataset.name} {item['name']}")
    if not len(dataset.pictures):
        raise InputError(f"data set {dataset.name}: holds no pictures; check its folders")
    return values


def bicubic(
    sets: Sequence[EvalSet],
    *,
    metrics: Mapping[str, Mapping[str, Any]],
    saving: Saving | None = None,
    provenance: Provenance | None = None,
    progress: Callable[[str], None] | None = None,
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
        )
    return records
