"""The training loader: an endless stream of batches that can be stopped and resumed at the same
crop."""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from quantsr.basicsr_compat import DATASET_REGISTRY
from quantsr.config.arguments import takes_dict
from quantsr.config.binding import parameters
from quantsr.data.crops import CroppedImageDataset, epoch_order, find_sources, sample_rng
from quantsr.data.device_crops import DeviceCrops, fits
from quantsr.data.images import read_rgb
from quantsr.data.options import complete, for_basicsr
from quantsr.data.store import Source, check_partners, large_enough
from quantsr.errors import InputError, WorkError
from quantsr.pictures.listing import list_images, pair_up

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


def _identity(batch: Any) -> Any:
    return batch


class SeededSamples(Dataset[Batch]):
    """Sample ``i`` of an endless stream over a data set that draws from the global random states,
    as BasicSR's do.

    The states are seeded from ``(seed, i)`` for each sample and restored afterwards, so that sample
    ``i`` is the same in any process.
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int, shuffle: bool = True) -> None:
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, len(self))
        number = int(epoch_order(self.seed, epoch, len(self), self.shuffle)[place])
        value = int(sample_rng(self.seed, index).integers(2**32))
        before = random.getstate(), np.random.get_state()  # noqa: NPY002  (BasicSR draws from the global state)
        try:
            random.seed(value)
            np.random.seed(value)  # noqa: NPY002
            sample = self.dataset[number]
        except (OSError, AttributeError, TypeError, ValueError, lmdb.Error) as error:
            names = self._names(number)
            for path in filter(Path.is_file, map(Path, names)):
                read_rgb(path)  # raises with the name of the file that cannot be read
            raise InputError(
                f"{' with '.join(names)}: cannot be used for training ({error}); check the files"
            ) from error
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
        return {"lq": sample["lq"], "gt": sample["gt"]}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return default_collate([self[index] for index in indices])

    def _names(self, number: int) -> list[str]:
        """The files or LMDB keys of a sample."""
        paths = getattr(self.dataset, "paths", None) or {number: f"sample {number}"}
        found = paths[number]
        return list(dict.fromkeys(map(str, found.values() if isinstance(found, dict) else [found])))


class _InWorker(Dataset[Any]):
    """A data set in a loader process. An `InputError` is returned in place of the batch: where a
    worker raises, torch puts its whole traceback into the message."""

    def __init__(self, dataset: CroppedImageDataset | SeededSamples) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> Batch | InputError:
        try:
            return self.dataset.__getitems__(indices)
        except InputError as error:
            return error


class _Batches:
    """An endless batch sampler: lists of the sample indices of one rank, from sample ``start``
    on."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size


class _Background:
    """Runs an iterator in a thread, ``depth`` items ahead. Its exceptions are raised by
    ``__next__``."""

    def __init__(self, source: Iterator[Any], depth: int, finish: Callable[[Any], Batch] = _identity) -> None:
        """``finish`` is applied to each item by ``__next__``, in the caller's thread."""
        self._items: queue.Queue[Any] = queue.Queue(depth)
        self._finish = finish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), name="loader", daemon=True)
        self._thread.start()

    def _work(self, source: Iterator[Any]) -> None:
        try:
            for item in source:
                if not self._put(item):
                    return
        except BaseException as error:  # raised by __next__
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = self._items.get()
        if isinstance(item, BaseException):
            self._items.put(item)  # further calls raise it again
            raise item
        return self._finish(item)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30)


class TrainLoader:
    """An endless iterator over training batches ``{"lq": (B, 3, h, w), "gt": (B, 3, s*h, s*w)}``,
    float32 in [0, 1], RGB.

    Batch ``k`` of rank ``r`` consists of the samples ``(k * world_size + r) * batch_size ...`` of
    one stream that the seed alone determines; it does not depend on the number of workers or on
    interruptions.

    Attributes:
        position: samples handed out so far, over all ranks.
        samples_per_epoch: samples in one pass over the pictures.
    """

    def __init__(
        self,
        dataset: CroppedImageDataset | SeededSamples,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        prefetch: int = 3,
        samples_per_epoch: int | None = None,
        crops: DeviceCrops | None = None,
    ) -> None:
        """Loading starts with the first call of ``next``.

        Args:
            dataset: maps any index ``>= 0`` to a sample, and by ``__getitems__`` many indices to a
                batch.
            batch_size: samples per rank and batch.
            seed: the seed of the data set; `load_state_dict` compares it with that of the state.
            num_workers: loader processes; 0 for a thread of this process.
            rank, world_size: of this process; they select its part of each global batch.
            pin_memory: page-locked batches (ignored where there is no CUDA device).
            prefetch: batches kept ready (per worker).
            samples_per_epoch: default the length of the data set.
            crops: the data set's pictures on a device; batches are then cut there, without loader
                processes.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0..{world_size - 1}, got {rank}")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.prefetch = num_workers, max(1, prefetch)
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.samples_per_epoch = samples_per_epoch or len(dataset)
        self.crops = crops
        self.position = 0
        self._stream: Iterator[Batch] | None = None

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            self._stream = self._open()
        try:
            batch = next(self._stream)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise WorkError(
                f"a loader process died ({error}); lower num_worker_per_gpu or free memory"
            ) from error
        if isinstance(batch, InputError):
            raise batch
        self.position += self.batch_size * self.world_size
        return batch

    @property
    def epoch(self) -> float:
        """Passes over the pictures so far."""
        return self.position / self.samples_per_epoch

    def state_dict(self) -> dict[str, int]:
        """The state from which the next batch follows: the samples handed out so far and the
        seed."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resumes at the position of ``state``; prefetched batches are dropped.

        Raises:
            InputError: the state belongs to another seed.
        """
        if int(state["seed"]) != self.seed:
            raise InputError(
                f"manual_seed: {self.seed}, but the state to resume has {state['seed']}; set it back, or start anew"
            )
        if int(state["position"]) < 0:
            raise ValueError(f"position {state['position']} in the data")
        self.close()
        self.position = int(state["position"])

    def _open(self) -> Iterator[Batch]:
        batches = _Batches(self.position, self.batch_size, self.rank, self.world_size)
        if self.crops is not None:
            return _Background(map(self.crops.layout, batches), self.prefetch, self.crops.cut)
        if self.num_workers == 0:
            # not in a thread: it changes the process's global random states
            if isinstance(self.dataset, SeededSamples):
                return map(self.dataset.__getitems__, batches)
            cropped, pin = self.dataset, self.pin_memory
            source = (cropped.__getitems__(batch, pin_memory=pin) for batch in batches)
            return _Background(source, self.prefetch)
        loader = DataLoader(
            _InWorker(self.dataset),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_identity,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch,
            worker_init_fn=_start_worker,
        )
        return iter(loader)

    def close(self) -> None:
        """Stops threads and processes. The position is kept, and ``next`` starts them again."""
        stream, self._stream = self._stream, None
        if isinstance(stream, _Background):
            stream.close()
        elif stream is not None and hasattr(stream, "_shutdown_workers"):
            stream._shutdown_workers()
        if isinstance(self.dataset, CroppedImageDataset):
            self.dataset.close()


def _start_worker(worker: int) -> None:
    """Use one thread per worker: the workers share the cores with the training."""
    torch.set_num_threads(1)


def build_train_loader(
    options: Any,
    scale: int,
    seed: int,
    batch_size: int | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
    device: torch.device | None = None,
) -> TrainLoader:
    """Builds the data set that the options name from BasicSR's registry, and its loader.

    Args:
        options: the data set's options (``options.datasets["train"]``), or a mapping with the same
            keys.
        scale: upscaling factor.
        seed: determines all crops.
        batch_size: per rank; default ``batch_size_per_gpu``.
        rank, world_size: of this process in a distributed training.
        pin_memory: default: the option ``pin_memory``.
        device: the training device; the pictures may be kept there (``device_cache``).

    Raises:
        InputError: pictures are missing, unreadable or all too small, or an option is wrong.
    """
    opt = complete(options, phase="train", scale=scale, seed=seed)
    workers = int(opt["num_worker_per_gpu"])
    kind = str(opt["type"])
    if kind not in DATASET_REGISTRY:
        raise InputError(
            f"type: no data set is called {kind!r}; known are {', '.join(sorted(DATASET_REGISTRY.keys()))}"
        )
    dataset: CroppedImageDataset | SeededSamples
    crops = None
    if kind == CroppedImageDataset.__name__:
        dataset = cropped = CroppedImageDataset(opt)
        if device is not None and fits(cropped, device, opt["device_cache"]):
            crops = DeviceCrops(cropped, device)
        if not cropped.in_memory:
            workers = 0  # threads of this process decode the windows of pictures
    else:
        dataset = SeededSamples(_build(kind, opt), seed=seed, shuffle=bool(opt["use_shuffle"]))
    return TrainLoader(
        dataset,
        batch_size=batch_size or int(opt["batch_size_per_gpu"]),
        seed=seed,
        num_workers=workers,
        rank=rank,
        world_size=world_size,
        pin_memory=bool(opt["pin_memory"]) if pin_memory is None else pin_memory,
        prefetch=max(3, int(opt["num_prefetch_queue"])),
        samples_per_epoch=len(dataset) * int(opt["dataset_enlarge_ratio"]),
        crops=crops,
    )


def check_training_set(options: Any, scale: int) -> None:
    """Checks the pictures as building the loader does, without decoding: lists and pairs them, and
    reads their headers.

    Raises:
        InputError: as `build_train_loader`, and for pictures on which a later batch would fail.
    """
    opt = complete(options, phase="train", scale=scale, seed=0)
    kind, size = str(opt["type"]), int(opt.get("gt_size") or 0)
    if kind == CroppedImageDataset.__name__:
        sources, _ = large_enough(find_sources(opt), size)
        check_partners(sources, scale)
    elif kind in DATASET_REGISTRY:
        paths = getattr(_build(kind, opt), "paths", None)
        if kind == "PairedImageDataset" and opt["io_backend"].get("type") == "disk" and paths:
            sources = [Source(Path(pair["gt_path"]), Path(pair["lq_path"])) for pair in paths]
            kept, _ = large_enough(sources, size)
            if len(kept) < len(sources):
                raise InputError(
                    f"{opt['dataroot_gt']}: pictures are smaller than gt_size {size}, which {kind} does not skip; "
                    "remove them, or use CroppedImageDataset"
                )
            check_partners(sources, scale)


def _build(kind: str, opt: dict[str, Any]) -> Dataset[Any]:
    """A registered data set, one of BasicSR's or the user's; its assertions and missing files
    become an `InputError`."""
    target = DATASET_REGISTRY.get(kind)
    listed = _listed_pairs(opt) if kind == "PairedImageDataset" else None
    if takes_dict(target):
        arguments: dict[str, Any] = {"opt": for_basicsr(opt)}
    else:
        arguments = {word: opt[word] for word in parameters(target) if word in opt}
    try:
        dataset: Dataset[Any] = target(**arguments)
        if listed is not None:
            dataset.paths = listed  # type: ignore[attr-defined]
    except (AssertionError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{opt.get('name', kind)}: {kind} cannot be built from its options ({error}); check the folders and keys"
        ) from error
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise InputError(f"{opt['dataroot_gt']}: no pictures in it; check dataroot_gt")
    return dataset


def _listed_pairs(opt: dict[str, Any]) -> list[dict[str, str]] | None:
    """The pairs of a ``meta_info_file`` in BasicSR's form. BasicSR's own reader fails on spaces and
    on a byte-order mark.

    Raises:
        InputError: one of the pictures is missing.
    """
    if not opt.get("meta_info_file") or opt["io_backend"].get("type") != "disk":
        return None
    gt_paths = list_images(Path(opt["dataroot_gt"]), opt["meta_info_file"])
    pairs = pair_up(gt_paths, Path(opt["dataroot_lq"]), opt.get("filename_tmpl") or "{}")
    return [{"lq_path": str(lq), "gt_path": str(gt)} for gt, lq in pairs]
