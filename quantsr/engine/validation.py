"""Validation during training: the evaluation loop on the ``val`` sets, the baseline, and the best
network so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from quantsr.archs import contract
from quantsr.config import Options, registries
from quantsr.config.binding import parameters
from quantsr.data.resize import imresize_uint8
from quantsr.engine import build
from quantsr.engine.evaluate import (
    EvalSet,
    Provenance,
    Saving,
    bicubic,
    evaluate,
    evaluating,
    network_upscaler,
    picture_name,
)
from quantsr.engine.results import Record, mean_value, table
from quantsr.engine.run_folder import RunFolder
from quantsr.engine.saved_pictures import unique_names
from quantsr.hardware.processes import World

logger = logging.getLogger(__name__)

SHOWN_PICTURES = 2
"""Pictures of the first set that TensorBoard shows."""


class Stopped(Exception):
    """A signal or the time limit stopped a validation."""


def left_out(what: str, error: Exception) -> None:
    """Logs a warning for a picture that is left out; the training continues without it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    logger.warning("%s: left out of the validation (%s)", what, reason)


def metric_arguments(options: Options) -> dict[str, dict[str, Any]]:
    """The metrics of ``options.val`` in the form for `evaluate`; of ``crop_border`` and
    ``test_y_channel`` each metric gets those that it accepts."""
    known = registries.metrics()
    found = {}
    for name, metric in (options.val.metrics if options.val is not None else {}).items():
        accepted = parameters(known[metric.type])
        common = {"crop_border": metric.crop_border, "test_y_channel": metric.test_y_channel}
        own = {key: value for key, value in metric.arguments().items() if key not in (*common, "better")}
        found[name] = {"type": metric.type, **{k: v for k, v in common.items() if k in accepted}, **own}
    return found


class Validation:
    """The evaluations of a training run.

    Args:
        options: of the run.
        sets: the ``val`` sets; none switches validation off.
        folder: of the run, for pictures.
        world: processes that share the pictures; each saves those that it upscaled.
    """

    def __init__(
        self, options: Options, sets: Sequence[EvalSet], folder: RunFolder, world: World | None = None
    ) -> None:
        self.options = options
        self.world = world or World()
        self.metrics = metric_arguments(options)
        self.sets = sets if self.metrics else ()
        self.folder = folder
        self._baseline: list[Record] | None = None

    def provenance(self, iteration: int | None) -> Provenance:
        """The provenance of this run's records."""
        return Provenance(config_hash=self.options.config_hash(), iteration=iteration)

    def baseline(self) -> list[Record]:
        """The bicubic rows, computed once; empty where ``val.baseline`` is off."""
        if self._baseline is None:
            wanted = self.options.val is not None and self.options.val.baseline
            sets = self.sets if wanted else ()
            self._baseline = bicubic(
                sets, metrics=self.metrics, provenance=self.provenance(None), leave_out=left_out
            )
        return self._baseline

    def depths(self, net: nn.Module, stage: int, depth: int | None = None) -> Sequence[int] | None:
        """The depths to evaluate: in stage 1 the one that is trained, ``depth`` or the full one,
        since blocks are not ranked yet; in stage 2 those of the options, or all."""
        depths = contract.of(net).depths or None
        if depths is None:
            return None
        if depth is not None:
            return [depth]
        return build.depths_to_evaluate(net, self.options) if stage == 2 else depths[:1]

    def run(
        self,
        net: nn.Module,
        iteration: int,
        stage: int,
        progress: Callable[[str], None],
        depth: int | None = None,
    ) -> list[Record]:
        """Evaluates ``net``, at ``depth`` where blocks were removed; the main process logs one
        table per set, bicubic first. All processes get the same records."""
        val = self.options.val
        assert val is not None
        saving = None
        if val.save_img:
            suffix = f"{val.suffix or self.options.name}_{iteration}"
            saving = Saving(self.folder.pictures, suffix, val.num_save_img)
        total = sum(len(range(self.world.rank, len(d.pictures), self.world.size)) for d in self.sets)
        quiet = None if val.pbar and self.world.is_main else True
        with tqdm(total=total, desc="validation", leave=False, disable=quiet) as bar:

            def advance(line: str) -> None:
                bar.update()
                progress(line)

            records = evaluate(
                net,
                self.sets,
                metrics=self.metrics,
                name=build.title(net),
                depths=self.depths(net, stage, depth),
                ensemble=val.selfensemble_testing,
                saving=saving,
                provenance=self.provenance(iteration),
                progress=advance,
                leave_out=left_out,
                world=self.world,
            )
        if not self.world.is_main:
            return records
        rows = [*self.baseline(), *records]
        for dataset in self.sets:
            logger.info("iteration %d, %s:\n%s", iteration, dataset.name, table(rows, dataset.name))
        return records

    def picture_rows(
        self, net: nn.Module, depth: int | None = None
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """For the first pictures of the first set, name and LR, bicubic, network output (at
        ``depth``, by default the full one) and ground truth."""
        if not self.sets:
            return
        dataset = self.sets[0]
        upscale = network_upscaler(net, (depth,), scale=dataset.scale)
        shown = range(min(SHOWN_PICTURES, len(dataset.pictures)))
        names = unique_names([picture_name(dataset.pictures, index) for index in shown])
        for index, name in enumerate(names):
            try:
                item = dataset.pictures[index]
                with evaluating(net):
                    (sr,) = upscale(item["lq"])
                row = [item["lq"], imresize_uint8(item["lq"], dataset.scale), sr, item["gt"]]
            except Exception as error:  # as in `evaluate`
                left_out(f"{dataset.name}: {name}, shown", error)
            else:
                yield f"{dataset.name}/{name}", row

    def merit(self, records: Sequence[Record]) -> float:
        """The mean of the first metric over sets and depths, its sign changed where lower is
        better; NaN where there is no value."""
        assert self.options.val is not None
        metric = next(iter(self.metrics))
        if not any(record.metric == metric for record in records):
            return math.nan
        value = mean_value(records, metric)
        return -value if self.options.val.metrics[metric].better == "lower" else value

    def new_best(
        self, best: Mapping[str, Any] | None, records: Sequence[Record], iteration: int, stage: int
    ) -> dict[str, Any] | None:
        """The entry of ``records`` if they are better than ``best``, else None.

        Compared is the first metric of the options, averaged over sets and evaluated depths. The
        first validation of stage 2 replaces the best of stage 1, whose network is trained for the
        full depth alone; so does the first one with another metric, after resuming. Where pictures
        were left out, the values of two iterations may be means over different pictures.
        """
        assert self.options.val is not None
        metric = next(iter(self.metrics))
        value = (
            mean_value(records, metric) if any(record.metric == metric for record in records) else math.nan
        )
        if math.isnan(value):
            logger.warning("iteration %d: no value of %s; not compared with the best", iteration, metric)
            return None
        if (
            best is not None
            and (best["stage"], best["metric"]) == (stage, metric)
            and not math.isnan(best["value"])
        ):
            lower = self.options.val.metrics[metric].better == "lower"
            if not (value < best["value"] if lower else value > best["value"]):
                return None
        return {"metric": metric, "value": value, "iteration": iteration, "stage": stage}
