"""Progress of a training: progress bar, log lines, TensorBoard."""

from __future__ import annotations

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from quantsr.engine.results import Record
from quantsr.quant import layer_steps

logger = logging.getLogger(__name__)


class Monitor:
    """Reports the progress of one process; without output (``active=False``) for all but the main
    process.

    Args:
        total: iterations of the run.
        start: iterations already done.
        tensorboard: folder of the TensorBoard log, None for none.
    """

    def __init__(self, *, total: int, start: int, tensorboard: Path | None, active: bool = True) -> None:
        self.total = total
        self.active = active
        quiet = not active or sys.stderr is None or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, unit="it", dynamic_ncols=True, disable=quiet)
        self.writer: SummaryWriter | None = None
        if active and tensorboard is not None:
            with self._writing():
                # An interrupted run repeats the iterations after its last checkpoint: hide their
                # first points.
                self.writer = SummaryWriter(str(tensorboard), purge_step=start + 1 if start else None)
        self._since = time.perf_counter()
        self._steps = 0
        self._waited = 0.0
        self.total_waited = 0.0
        self.total_time = 0.0

    def waited(self, seconds: float) -> None:
        """Counts time that a step waited for data."""
        self._waited += seconds

    def stepped(self, loss: float | None, stage: int) -> None:
        """Counts one iteration; ``loss`` is None where reading it would wait for the device."""
        self._steps += 1
        if not self.bar.disable:
            self.bar.set_description(f"stage {stage}", refresh=False)
            if loss is not None:
                self.bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self.bar.update()

    def pause(self) -> float:
        """Ends the current interval and returns its seconds; time until `resume` is not counted."""
        seconds = time.perf_counter() - self._since
        self.total_time += seconds
        self.total_waited += self._waited
        return seconds

    def resume(self) -> None:
        """Starts a new interval."""
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def report(self, iteration: int, stage: int, rates: Sequence[float], log: Mapping[str, float]) -> None:
        """Writes one log line and the TensorBoard scalars for the interval since the last
        report."""
        steps, waited = self._steps, self._waited
        seconds = self.pause()
        self.resume()
        if not self.active or steps == 0:
            return
        speed = steps / seconds
        left = datetime.timedelta(seconds=round((self.total - iteration) / speed))
        share = waited / seconds
        terms = ", ".join(f"{name} {value:.4e}" for name, value in log.items())
        logger.info(
            "iteration %d/%d, stage %d, lr %.3e, %s, %.2f it/s, data wait %.1f %%, ETA %s",
            iteration,
            self.total,
            stage,
            rates[0],
            terms,
            speed,
            100 * share,
            left,
        )
        self.scalars("train", {**log, "lr": rates[0], "it_per_s": speed, "data_wait": share}, iteration)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[SummaryWriter | None]:
        """The TensorBoard log, None where there is none. A failure in the body ends the log, not
        the training."""
        try:
            yield self.writer
        except Exception as error:  # from protobuf, the disk, or TensorBoard's thread
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("TensorBoard log: cannot be written (%s); going on without it", reason)
            self.writer = None

    def scalars(self, group: str, values: Mapping[str, float], iteration: int) -> None:
        """TensorBoard scalars under ``group/``."""
        with self._writing() as writer:
            if writer is not None:
                for name, value in values.items():
                    writer.add_scalar(_as_text(f"{group}/{name}"), value, iteration)

    def steps_of(self, net: nn.Module, iteration: int) -> None:
        """The quantizers' steps, per layer."""
        if self.writer is not None:
            self.scalars("quantizers", layer_steps(net), iteration)

    def records(self, records: Sequence[Record], iteration: int) -> None:
        """Validation results: a scalar per set, metric and depth."""
        for record in records:
            depth = "" if record.depth is None else f"/depth{record.depth}"
            self.scalars(f"val/{record.set}", {f"{record.metric}{depth}": record.value}, iteration)

    def pictures(self, name: str, row: Sequence[np.ndarray], iteration: int) -> None:
        """Writes LR (enlarged by repetition), bicubic, network output and ground truth side by
        side, ``(H, W, 3)`` uint8 RGB."""
        if self.writer is None:
            return
        name = _as_text(name)
        height, width = row[-1].shape[:2]
        same = [
            p if p.shape == row[-1].shape else cv2.resize(p, (width, height), interpolation=cv2.INTER_NEAREST)
            for p in row
        ]
        with self._writing() as writer:
            if writer is not None:
                writer.add_image(name, np.concatenate(same, axis=1), iteration, dataformats="HWC")

    def summary(self) -> dict[str, Any]:
        """Seconds of training and the share of them spent waiting for data."""
        share = self.total_waited / self.total_time if self.total_time else 0.0
        return {"seconds": self.total_time, "data_wait": share}

    def close(self) -> None:
        """Closes bar and TensorBoard log."""
        self.bar.close()
        with self._writing() as writer:
            if writer is not None:
                writer.close()


def _as_text(name: str) -> str:
    """The name with bytes that are not UTF-8 escaped, for TensorBoard."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
