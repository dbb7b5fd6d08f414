"""Evaluation sets: sequences of uint8 RGB pictures with their LR, read when they are asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from quantsr.data.images import as_folders, decode, list_images, pair_up, read_rgb
from quantsr.data.options import complete
from quantsr.data.resize import U8, imresize_uint8, mod_crop
from quantsr.errors import InputError

#: The photographs that scikit-image ships as PNG (public domain / CC0), and their sizes.
SKIMAGE_PICTURES = ("astronaut", "coffee", "chelsea")


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
        pairs: files of ground truth and LR; without LR file it is made by MATLAB's bicubic.
    """

    name: str
    scale: int
    pairs: tuple[tuple[Path, Path | None], ...]

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
        lq = self._made(gt, gt_path) if lq_path is None else read_rgb(lq_path)
        return {"name": gt_path.stem, "lq": lq, "gt": crop_to(gt, lq, self.scale, gt_path)}

    def _made(self, gt: U8, path: Path) -> U8:
        if min(gt.shape[:2]) < self.scale:
            raise InputError(
                f"{path}: {gt.shape[1]}x{gt.shape[0]} is too small for scale {self.scale}; remove it"
            )
        return imresize_uint8(mod_crop(gt, self.scale), 1 / self.scale)


@dataclass(frozen=True)
class LmdbEvalDataset(Sequence[EvalItem]):
    """The same over a pair of BasicSR's LMDB folders."""

    name: str
    scale: int
    gt_root: Path
    lq_root: Path
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[EvalItem]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> EvalItem:  # type: ignore[override]  # no slices
        """Reads one picture.

        Raises:
            InputError: the LMDB or an entry is missing or damaged, or the sizes do not fit the scale.
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
        InputError: it is smaller than that, or larger by more than ``scale`` and the remainder lost in shrinking.
    """
    height, width = lq.shape[0] * scale, lq.shape[1] * scale
    if not (0 <= gt.shape[0] - height < 2 * scale and 0 <= gt.shape[1] - width < 2 * scale):
        raise InputError(
            f"{name}: {gt.shape[1]}x{gt.shape[0]} does not fit its LR picture of {lq.shape[1]}x{lq.shape[0]} at scale {scale}; "
            "check dataroot_lq, filename_tmpl and scale"
        )
    return np.ascontiguousarray(gt[:height, :width])


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
        options: the data set's options (``options.datasets["val"]``) or a mapping with the same keys:
            ``type: SkimageDataset`` needs no folder; every other type takes ``dataroot_gt`` with
            ``dataroot_lq`` and ``filename_tmpl`` (files or LMDB), or ``dataroot_gt`` alone, from which LR is made;
            ``meta_info_file`` picks files.
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
    keys = []
    for root in (gt_root, lq_folders[0]):
        try:
            lines = (root / "meta_info.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"{root}: not an LMDB folder of BasicSR (no meta_info.txt); make it with `quantsr prepare lmdb`"
            ) from None
        keys.append([line.split(".")[0] for line in lines if line.strip()])
    if set(keys[0]) != set(keys[1]):
        raise InputError(
            f"{lq_folders[0]}: its keys are not those of {gt_root}; make both from the same pictures"
        )
    return LmdbEvalDataset(name, scale, gt_root, lq_folders[0], tuple(sorted(keys[0])))
