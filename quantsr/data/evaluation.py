"""Evaluation sets: sequences of uint8 RGB pictures with their LR pictures, read on access."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from quantsr.data.images import as_folders, decode, picture_size, read_rgb
from quantsr.data.options import complete
from quantsr.data.resize import U8, imresize_uint8, mod_crop
from quantsr.errors import InputError
from quantsr.files import read_text
from quantsr.pictures.listing import list_images, pair_up

#: The photographs that scikit-image ships as PNG (public domain / CC0).
SKIMAGE_PICTURES = ("astronaut", "coffee", "chelsea")


LeaveOut = Callable[[str, Exception], None]
"""Called with the name of a picture that is left out, and the reason; it raises, or returns to
continue without the picture."""


class EvalItem(TypedDict):
    """One picture: ``lq`` ``(h, w, 3)`` and ``gt`` ``(s*h, s*w, 3)``, uint8 RGB."""

    name: str
    lq: U8
    gt: U8


@dataclass(frozen=True)
class EvalDataset(Sequence[EvalItem]):
    """A named evaluation set. Items are decoded on each access, in the order of their names.

    Attributes:
        name: for tables.
        scale: ground-truth side over LR side.
        pairs: files of ground truth and LR; without an LR file, LR is made by MATLAB's bicubic.
    """

    name: str
    scale: int
    pairs: tuple[tuple[Path, Path | None], ...]

    @property
    def names(self) -> list[str]:
        """The names of the pictures, without reading them."""
        return [gt.stem for gt, _ in self.pairs]

    def usable(self, least_side: int, leave_out: LeaveOut | None = None) -> EvalDataset:
        """The set without the pictures that cannot be evaluated according to their headers.

        Args:
            least_side: least side of a ground-truth picture in pixels.
            leave_out: called with the name and the problem of each picture that is left out.

        Raises:
            InputError: a picture cannot be evaluated and ``leave_out`` is None; or none is left.
        """
        kept = []
        for pair in self.pairs:
            try:
                self._check(*pair, least_side)
            except InputError as error:
                if leave_out is None:
                    raise
                leave_out(f"{self.name}: {pair[0].stem}", error)
            else:
                kept.append(pair)
        _check_some(self.name, kept, self.pairs)
        return replace(self, pairs=tuple(kept))

    def _check(self, gt_path: Path, lq_path: Path | None, least_side: int) -> None:
        gt = picture_size(gt_path)
        if lq_path is None:
            _check_scale(gt, self.scale, gt_path)
            size = (gt[0] - gt[0] % self.scale, gt[1] - gt[1] % self.scale)
        else:
            lq = picture_size(lq_path)
            size = (lq[0] * self.scale, lq[1] * self.scale)
            # EXIF orientation may swap the sides of one of them
            if not (_fits(gt, size, self.scale) or _fits(gt[::-1], size, self.scale)):
                raise _misfit(gt, lq, self.scale, gt_path)
        _check_side(size, least_side, gt_path)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[EvalItem]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> EvalItem:  # type: ignore[override]  # no slices
        """Reads one picture.

        Raises:
            InputError: a file cannot be read, or the sizes do not fit the scale.
        """
        gt_path, lq_path = self.pairs[index]
        gt = read_rgb(gt_path)
        lq = self._downscale(gt, gt_path) if lq_path is None else read_rgb(lq_path)
        return {"name": gt_path.stem, "lq": lq, "gt": crop_to(gt, lq, self.scale, gt_path)}

    def _downscale(self, gt: U8, path: Path) -> U8:
        _check_scale(gt.shape[:2], self.scale, path)
        return imresize_uint8(mod_crop(gt, self.scale), 1 / self.scale)


@dataclass(frozen=True)
class LmdbEvalDataset(Sequence[EvalItem]):
    """An evaluation set in a pair of BasicSR's LMDB folders; see `EvalDataset`."""

    name: str
    scale: int
    gt_root: Path
    lq_root: Path
    keys: tuple[str, ...]
    sizes: tuple[tuple[int, int] | None, ...] = ()
    """Height and width of the LR pictures, None where ``meta_info.txt`` does not give them."""

    @property
    def names(self) -> list[str]:
        """The keys."""
        return list(self.keys)

    def usable(self, least_side: int, leave_out: LeaveOut | None = None) -> LmdbEvalDataset:
        """As `EvalDataset.usable`, by the sizes in ``meta_info.txt``."""
        kept = []
        for key, size in zip(self.keys, self.sizes or (None,) * len(self.keys), strict=True):
            try:
                if size is not None:
                    _check_side((size[0] * self.scale, size[1] * self.scale), least_side, self.gt_root / key)
            except InputError as error:
                if leave_out is None:
                    raise
                leave_out(f"{self.name}: {key}", error)
            else:
                kept.append((key, size))
        _check_some(self.name, kept, self.keys)
        return replace(self, keys=tuple(key for key, _ in kept), sizes=tuple(size for _, size in kept))

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[EvalItem]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> EvalItem:  # type: ignore[override]  # no slices
        """Reads one picture.

        Raises:
            InputError: the LMDB or an entry is missing or damaged, or the sizes do not fit the
                scale.
        """
        import lmdb

        key = self.keys[index]
        pictures = []
        for root in (self.gt_root, self.lq_root):
            try:
                with (
                    lmdb.open(str(root), readonly=True, lock=False, readahead=False) as env,
                    env.begin() as view,
                ):
                    pictures.append(decode(view.get(key.encode()) or b"", root / key))
            except lmdb.Error as error:
                raise InputError(
                    f"{root}: cannot be read ({error}); make it again with `quantsr prepare lmdb`"
                ) from None
        gt, lq = pictures
        return {"name": key, "lq": lq, "gt": crop_to(gt, lq, self.scale, self.gt_root / key)}


def crop_to(gt: U8, lq: U8, scale: int, name: Path) -> U8:
    """The ground truth cropped to LR * scale, as BasicSR does.

    Raises:
        InputError: the ground truth is smaller than that, or larger by 2 * scale or more.
    """
    height, width = lq.shape[0] * scale, lq.shape[1] * scale
    if not _fits(gt.shape, (height, width), scale):
        raise _misfit(gt.shape, lq.shape, scale, name)
    return np.ascontiguousarray(gt[:height, :width])


def _fits(gt: Sequence[int], upscaled: Sequence[int], scale: int) -> bool:
    """Whether a ground truth of (height, width, ...) is as large as its upscaled LR picture, or
    larger by less than 2 * scale."""
    return 0 <= gt[0] - upscaled[0] < 2 * scale and 0 <= gt[1] - upscaled[1] < 2 * scale


def _misfit(gt: Sequence[int], lq: Sequence[int], scale: int, name: Path) -> InputError:
    return InputError(
        f"{name}: {gt[1]}x{gt[0]} does not fit its LR picture of {lq[1]}x{lq[0]} at scale {scale}; "
        "check dataroot_lq, filename_tmpl and scale"
    )


def _check_scale(size: Sequence[int], scale: int, path: Path) -> None:
    if min(size) < scale:
        raise InputError(f"{path}: {size[1]}x{size[0]} is too small for scale {scale}; remove it")


def _check_side(size: Sequence[int], least_side: int, path: Path) -> None:
    if min(size) < least_side:
        raise InputError(
            f"{path}: {size[1]}x{size[0]} is too small for val.metrics, whose windows and borders need "
            f"{least_side}x{least_side}; remove it, or lower crop_border"
        )


def _check_some(name: str, kept: Sequence[Any], pictures: Sequence[Any]) -> None:
    if pictures and not kept:
        raise InputError(
            f"data set {name}: none of its {len(pictures)} pictures can be evaluated; replace them"
        )


def skimage_pictures() -> list[Path]:
    """The three photographs in the installed scikit-image.

    Raises:
        InputError: scikit-image or one of the files is missing.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise InputError(
            "SkimageDataset: scikit-image is not installed; `pip install scikit-image`, or name your own folder"
        )
    folder = Path(spec.origin).parent / "data"
    paths = [folder / f"{name}.png" for name in SKIMAGE_PICTURES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{folder}: this scikit-image comes without {', '.join(missing)}; reinstall it, or name your own folder"
        )
    return paths


def build_eval_dataset(options: Any, scale: int) -> EvalDataset | LmdbEvalDataset:
    """The evaluation set that the options name.

    Args:
        options: the data set's options (``options.datasets["val"]``) or a mapping with the same
            keys: ``type: SkimageDataset`` needs no folder; every other type takes ``dataroot_gt``
            with ``dataroot_lq`` and ``filename_tmpl`` (files or LMDB), or ``dataroot_gt`` alone,
            from which LR is made; ``meta_info_file`` selects files.
        scale: upscaling factor.

    Raises:
        InputError: a folder, picture or LR partner is missing.
    """
    opt = complete(options, scale=scale)
    kind = str(opt["type"])
    name = str(opt.get("name", kind))
    if kind == "SkimageDataset":
        return EvalDataset(name, scale, tuple((path, None) for path in skimage_pictures()))
    if not opt["dataroot_gt"]:
        raise InputError(f"datasets.{name}.dataroot_gt: missing; name a folder of ground-truth pictures")
    gt_folders = as_folders(opt["dataroot_gt"])
    lq_folders = as_folders(opt["dataroot_lq"]) if opt["dataroot_lq"] else []
    if opt["io_backend"]["type"] == "lmdb":
        return _lmdb(name, scale, gt_folders[0], lq_folders)
    if lq_folders and len(lq_folders) != len(gt_folders):
        raise InputError(
            f"datasets.{name}.dataroot_lq: {len(lq_folders)} folders for {len(gt_folders)} of dataroot_gt; give one for each"
        )
    pairs: list[tuple[Path, Path | None]] = []
    for number, folder in enumerate(gt_folders):
        paths = list_images(folder, opt["meta_info_file"])
        if lq_folders:
            pairs += pair_up(paths, lq_folders[number], opt["filename_tmpl"])
        else:
            pairs += [(path, None) for path in paths]
    return EvalDataset(name, scale, tuple(pairs))


def _lmdb(name: str, scale: int, gt_root: Path, lq_folders: Sequence[Path]) -> LmdbEvalDataset:
    if not lq_folders:
        raise InputError(
            f"datasets.{name}.dataroot_lq: missing; an LMDB of ground truth needs one of LR pictures"
        )
    keys: list[dict[str, tuple[int, int] | None]] = []
    for root in (gt_root, lq_folders[0]):
        try:
            lines = read_text(root / "meta_info.txt", encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"{root}: not an LMDB folder of BasicSR (no meta_info.txt); make it with `quantsr prepare lmdb`"
            ) from None
        keys.append({line.split(".")[0]: _listed_size(line) for line in lines if line.strip()})
    if keys[0].keys() != keys[1].keys():
        raise InputError(
            f"{lq_folders[0]}: its keys are not those of {gt_root}; make both from the same pictures"
        )
    names = tuple(sorted(keys[0]))
    return LmdbEvalDataset(name, scale, gt_root, lq_folders[0], names, tuple(keys[1][key] for key in names))


def _listed_size(line: str) -> tuple[int, int] | None:
    """Height and width in a line ``NAME.png (h,w,c) LEVEL``."""
    match = re.search(r"\((\d+),\s*(\d+),\s*\d+\)", line)
    return (int(match[1]), int(match[2])) if match else None
