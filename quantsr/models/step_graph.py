"""Training steps as CUDA graphs: one launch instead of thousands of kernel launches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]

WARM_UP = 3
"""Eager steps before the capture, which compile and select kernels and create optimizer state."""


class StepGraph:
    """Calls ``step``: eagerly during warm-up, then by replaying its CUDA graph.

    Whatever changes from step to step must be in the batches or in the learning rates; everything
    else is fixed by the recording, until `forget`. If capture fails, steps run eagerly.

    Args:
        step: maps batches to loss terms, 0-dim tensors; makes gradients, moves parameters, and
            never waits for the device.
        optimizers: that ``step`` uses; the rates of their groups may change between steps.
        device: a CUDA device.
    """

    def __init__(
        self,
        step: Callable[[Sequence[Batch]], Terms],
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self.step, self.optimizers, self.device = step, optimizers, device
        self.rates = torch.zeros(len(self._groups), device=device)
        self.stream = torch.cuda.Stream(device)
        self.works = True
        self.forget()

    def forget(self) -> None:
        """Discard the graph; warm-up and capture start again."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0
        self._batches: list[dict[str, Tensor]] = []
        self._terms: Terms = {}

    @property
    def _groups(self) -> list[dict[str, object]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def __call__(self, batches: Sequence[Batch]) -> Terms:
        """One step. The terms are overwritten by the next."""
        if not self.works:
            return self.step(batches)
        if _shapes(batches) != _shapes(self._batches):
            self.forget()
            self._batches = [
                {key: torch.empty_like(value) for key, value in batch.items()} for batch in batches
            ]
        for kept, batch in zip(self._batches, batches, strict=True):
            for key, value in batch.items():
                kept[key].copy_(value, non_blocking=True)
        self._done += 1
        if self._done <= WARM_UP:
            return self._warm_up_step()
        if self._graph is None:
            self._record()
            if self._graph is None:
                return self.step(batches)
        self.rates.copy_(torch.tensor([group["lr"] for group in self._groups]), non_blocking=True)
        self._graph.replay()
        return self._terms

    def _warm_up_step(self) -> Terms:
        """An eager step on the capture stream (warm-up)."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            terms = self.step(self._batches)
        current.wait_stream(self.stream)
        return terms

    def _record(self) -> None:
        """Capture a step without running it."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load data may allocate meanwhile.
            with (
                self._rates_as_tensors(),
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                self._terms = self.step(self._batches)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning(
                "the training step cannot be recorded as a CUDA graph (%s); going on without", reason
            )
            self.works = False
            self.forget()
            torch.cuda.synchronize(self.device)
            return
        self._graph = graph
        logger.info("the training step is recorded as a CUDA graph")

    @contextlib.contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """Within it, the groups' rates are views of the tensor `rates`, which a replay reads."""
        groups = self._groups
        before = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self.rates.unbind(), strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = True
            yield
        finally:
            for group, old in zip(groups, before, strict=True):
                group.update(old)


def _shapes(batches: Sequence[Batch]) -> list[dict[str, torch.Size]]:
    return [{key: value.shape for key, value in batch.items()} for batch in batches]
