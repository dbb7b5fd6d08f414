"""Checks that the folders and files that the options name exist."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from quantsr.config.problems import KeyPath, Problems
from quantsr.errors import InputError
from quantsr.files import read_text
from quantsr.pictures.listing import list_images
from quantsr.trained_files.names import PACKED, resolve

_ROOTS = ("dataroot_gt", "dataroot_lq", "dataroot_soft")
_CHECKPOINTS = (
    "pretrain_network_g",
    "fp_pretrain_network_g",
    "pretrain_network_teacher",
    "resume_state",
)


def expand_paths(options: dict[str, Any]) -> None:
    """Replace ``~`` and environment variables (``$DATA``) in every path of the options, in
    place."""
    change_paths(options, lambda key, path: os.path.expanduser(os.path.expandvars(path)))


def change_paths(options: dict[str, Any], change: Callable[[KeyPath, str], str]) -> None:
    """Replace every path of the options by ``change(key, path)``, in place."""
    datasets = options.get("datasets")
    for name, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict):
            _change(dataset, ("datasets", name), (*_ROOTS, "meta_info_file"), change)
    if isinstance(options.get("path"), dict):
        _change(options["path"], ("path",), (*_CHECKPOINTS, "experiments_root", "results_root"), change)


def path_keys(options: dict[str, Any]) -> set[KeyPath]:
    """The keys of the options that hold paths."""
    found: set[KeyPath] = set()

    def note(key: KeyPath, path: str) -> str:
        found.add(key)
        return path

    change_paths(options, note)
    return found


def _change(
    section: dict[str, Any], parents: KeyPath, keys: tuple[str, ...], change: Callable[[KeyPath, str], str]
) -> None:
    for key in keys:
        value, path = section.get(key), (*parents, key)
        if isinstance(value, str):
            section[key] = change(path, value)
        elif isinstance(value, list):
            section[key] = [change(path, entry) if isinstance(entry, str) else entry for entry in value]


def check_checkpoints(
    section: Any, is_train: bool, problems: Problems, awaited: Collection[str] = ()
) -> None:
    """Note checkpoints that the run will read and that do not exist, except those in ``awaited``,
    which earlier runs will write."""
    if not isinstance(section, dict):
        return
    for key in _CHECKPOINTS if is_train else _CHECKPOINTS[:1]:
        value = section.get(key)
        if not isinstance(value, str) or value in awaited or os.path.isfile(value):
            continue
        if is_train or not _is_named(value):
            what = "is a folder" if os.path.isdir(value) else "does not exist"
            remedy = (
                "train it first, or correct the path" if key == "pretrain_network_g" else "correct the path"
            )
            problems.add(("path", key), f"{value!r} {what}{_seen_from(value)}; {remedy}")


def _is_named(value: str) -> bool:
    """Whether `resolve` finds a network of this name: that of a training run, or of a network that
    comes with quantsr."""
    return _resolved(value) is not None


def is_checkpoint(value: Any) -> bool:
    """Whether this path or name stands for a checkpoint, which need not exist yet, and not for a
    packed file."""
    if not isinstance(value, str):
        return False
    found = _resolved(value)
    return value.endswith(".pth") if found is None else found.suffix != PACKED


def _resolved(value: str) -> Path | None:
    try:
        return resolve(value)
    except InputError:
        return None


def is_left_out(dataset: Any) -> bool:
    """Whether a run leaves this set (an entry of ``Options.datasets``) out: it is ``optional`` and
    its folder does not exist."""
    roots = dataset.dataroot_gt
    folders = [roots] if isinstance(roots, str) else roots or []
    return dataset.optional and not all(os.path.isdir(folder) for folder in folders)


def check_dataset(key: str, dataset: dict[str, Any], problems: Problems) -> None:
    """Note folders of one data set that do not exist or hold no pictures, and pictures without
    their LR picture.

    The folders of an ``optional`` set need not exist.
    """
    root_gt = dataset.get("dataroot_gt")
    if dataset.get("optional") is True and isinstance(root_gt, str) and not os.path.exists(root_gt):
        return
    lmdb = isinstance(dataset.get("io_backend"), dict) and dataset["io_backend"].get("type") == "lmdb"
    names: dict[str, list[str]] = {}
    for root in _ROOTS:
        value = dataset.get(root)
        for folder in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            if isinstance(folder, str):
                found = _check_folder((key, root), folder, lmdb, problems)
                names[root] = names.get(root, []) + found
    meta = dataset.get("meta_info_file")
    if isinstance(meta, str) and _count_lines(meta) is None:
        what = "cannot be read as UTF-8 text" if os.path.isfile(meta) else "does not exist"
        problems.add(("datasets", key, "meta_info_file"), f"{meta!r} {what}; correct the path")
    elif isinstance(meta, str) and not lmdb:
        for folder in [root_gt] if isinstance(root_gt, str) else root_gt or []:
            if isinstance(folder, str) and os.path.isdir(folder):
                _check_listed(key, folder, meta, problems)
    if not lmdb and meta is None and names.get("dataroot_gt") and names.get("dataroot_lq"):
        _check_pairs(
            key, dataset.get("filename_tmpl", "{}"), names["dataroot_gt"], names["dataroot_lq"], problems
        )


def count_pictures(dataset: Any) -> int | None:
    """How many ground-truth pictures a data set has (an entry of ``Options.datasets``); None where
    that is unknown."""
    if dataset.type == "SkimageDataset":
        return 3
    lmdb = dataset.io_backend.type == "lmdb"
    roots = dataset.dataroot_gt or dataset.dataroot_lq
    folders = [roots] if isinstance(roots, str) else roots or []
    if not folders or not all(os.path.isdir(folder) for folder in folders):
        return None
    if lmdb:
        return sum(_count_lines(os.path.join(folder, "meta_info.txt")) or 0 for folder in folders)
    return sum(len(_pictures(folder, dataset.meta_info_file)) for folder in folders)


def _check_folder(key: tuple[str, str], folder: str, lmdb: bool, problems: Problems) -> list[str]:
    """Note the problems of a folder; return the names of its pictures."""
    if not os.path.isdir(folder):
        what = "is a file" if os.path.isfile(folder) else "does not exist"
        remedy = "correct the path or put the pictures there"
        problems.add(("datasets", *key), f"folder {folder!r} {what}{_seen_from(folder)}; {remedy}")
        return []
    if lmdb:
        if not folder.rstrip("/").endswith(".lmdb"):
            problems.add(
                ("datasets", *key), f"{folder!r} must end in '.lmdb'; make one with 'quantsr prepare lmdb'"
            )
            return []
        for name in ("meta_info.txt", "data.mdb"):
            if not os.path.isfile(os.path.join(folder, name)):
                problems.add(
                    ("datasets", *key), f"{folder!r} has no {name}; make it with 'quantsr prepare lmdb'"
                )
        return []
    pictures = _pictures(folder)
    if not pictures:
        problems.add(
            ("datasets", *key), f"no pictures in folder {folder!r}; correct the path or put them there"
        )
    return pictures


def _check_pairs(key: str, template: Any, gt: list[str], lq: list[str], problems: Problems) -> None:
    if not isinstance(template, str) or template.count("{}") != 1:
        return
    stems = {os.path.splitext(name)[0] for name in lq}
    absent = [name for name in gt if template.replace("{}", os.path.splitext(name)[0]) not in stems]
    if absent:
        first = template.replace("{}", os.path.splitext(absent[0])[0])
        remedy = "correct filename_tmpl or add the pictures"
        where = ("datasets", key, "dataroot_lq")
        problems.add(
            where,
            f"{len(absent)} of {len(gt)} pictures lack their pair ({first!r} for {absent[0]!r}); {remedy}",
        )


def _check_listed(key: str, folder: str, meta: str, problems: Problems) -> None:
    try:
        list_images(Path(folder), meta)
    except InputError as error:
        text = str(error).removeprefix("meta_info_file: ")
        problems.add(("datasets", key, "meta_info_file"), text)


def _pictures(folder: str, meta: str | None = None) -> list[str]:
    """The names of the pictures in a folder; none where a run would refuse the folder."""
    try:
        return [path.name for path in list_images(Path(folder), meta)]
    except (InputError, OSError):
        return []


def _count_lines(path: str) -> int | None:
    try:
        return sum(1 for line in read_text(Path(path)).splitlines() if line.strip())
    except (OSError, ValueError):  # not there, or not UTF-8
        return None


def _seen_from(path: str) -> str:
    """For messages about a relative path: the directory in which it starts."""
    return "" if os.path.isabs(path) else f" (seen from {os.getcwd()})"
