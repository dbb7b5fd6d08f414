"""Rules between keys, which types cannot express. They read the unchecked options, so that they are
applied even where other keys are wrong; problems of types are left to the schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantsr.config import registries
from quantsr.config.arguments import check_arguments
from quantsr.config.base import section_at, whole_number
from quantsr.config.folders import is_checkpoint
from quantsr.config.networks import check_depth_list, check_network, depth_units, network_depths
from quantsr.config.problems import Problems, did_you_mean
from quantsr.config.schema import dataset_phase


def check_rules(options: dict[str, Any], is_train: bool, problems: Problems) -> None:
    """Note every violation of a rule."""
    datasets = section_at(options, "datasets")
    scale = whole_number(options.get("scale"))
    scale = scale if type(scale) is int else None
    for key, dataset in datasets.items():
        _check_dataset(key, dataset, scale, problems)
    _check_names(datasets, is_train, problems)
    (_check_training if is_train else _check_test)(options, problems)
    _check_registered(options, problems)
    bound = check_network("network_g", options.get("network_g"), scale, problems)
    check_network("network_teacher", options.get("network_teacher"), scale, problems)
    if bound is not None:
        _check_depths(options, bound, problems)


def keys_in_use(datasets: dict[str, Any], is_train: bool) -> list[str]:
    """The data sets that a run will read: training and validation sets, or the test sets
    (validation sets where none)."""
    phases = {key: dataset_phase(key) for key in datasets}
    if is_train:
        return [key for key, phase in phases.items() if phase in ("train", "val")]
    tests = [key for key, phase in phases.items() if phase == "test"]
    return tests or [key for key, phase in phases.items() if phase == "val"]


def _check_names(datasets: dict[str, Any], is_train: bool, problems: Problems) -> None:
    """Note names used twice: tables and result folders distinguish sets by name alone."""
    seen: dict[Any, str] = {}
    for key in keys_in_use(datasets, is_train):
        name = section_at(datasets, key).get("name")
        if not isinstance(name, str) or dataset_phase(key) == "train":
            continue
        if seen.setdefault(name, key) != key:
            problems.add(
                ("datasets", key, "name"),
                f"{name!r} is the name of datasets.{seen[name]} too; give each its own",
            )


def _check_dataset(key: str, dataset: Any, scale: Any, problems: Problems) -> None:
    path = ("datasets", key)
    phase = dataset_phase(key)
    if phase is None:
        near = did_you_mean(key, ("train", "val", "test", "val_1", "test_1"))
        problems.add(
            path, f"unknown key of a data set; {near}" if "mean" in near else f"no such phase; {near}"
        )
    if not isinstance(dataset, dict):
        return
    if phase is not None and dataset.get("phase", phase) != phase:
        problems.add((*path, "phase"), f"is {dataset['phase']!r} but the key says {phase!r}; leave it out")
    kind = dataset.get("type")
    if isinstance(kind, str) and kind not in (known := registries.dataset_types()):
        problems.add((*path, "type"), f"no data set type {kind!r}; {did_you_mean(kind, known)}")
    paired = kind == "PairedImageDataset"
    lmdb = section_at(dataset, "io_backend").get("type") == "lmdb"
    needed = ["dataroot_gt"] if paired or kind == "CroppedImageDataset" else []
    if paired and (lmdb or phase not in ("val", "test")):
        needed.append("dataroot_lq")
    for root in needed:
        if root not in dataset:
            problems.add((*path, root), f"missing; {kind} needs this folder")
    if paired:
        for root in ("dataroot_gt", "dataroot_lq"):
            if isinstance(dataset.get(root), list):
                problems.add(
                    (*path, root), "PairedImageDataset takes one folder; use CroppedImageDataset for several"
                )
    if kind != "CroppedImageDataset" and "dataroot_soft" in dataset:
        problems.add(
            (*path, "dataroot_soft"), "only CroppedImageDataset has it; change the type or leave it out"
        )
    count = _folder_count(dataset.get("dataroot_gt"))
    for root in ("dataroot_lq", "dataroot_soft") if kind == "CroppedImageDataset" else ():
        own = _folder_count(dataset.get(root))
        if root in dataset and own != count:
            remedy = f"give one for each, or leave {root} out"
            problems.add((*path, root), f"{own} folders for {count} of dataroot_gt; {remedy}")
    if dataset.get("optional") is True and phase == "train":
        problems.add((*path, "optional"), "training cannot go on without its pictures; leave it out")
    if kind == "SkimageDataset" and phase == "train":
        problems.add((*path, "type"), "SkimageDataset is for val and test; train on CroppedImageDataset")
    template = dataset.get("filename_tmpl")
    if isinstance(template, str) and template.count("{}") != 1:
        problems.add(
            (*path, "filename_tmpl"), f"needs one '{{}}', where the picture's name goes, got {template!r}"
        )
    if phase == "train":
        size = whole_number(dataset.get("gt_size"))
        if size is None:
            problems.add((*path, "gt_size"), "missing; training needs a crop size, for example 192")
        elif isinstance(size, int) and scale in (2, 3, 4) and size % scale:
            near = max(1, size // scale) * scale
            problems.add((*path, "gt_size"), f"{size} is no multiple of scale {scale}; use {near}")


def _folder_count(roots: Any) -> int:
    return len(roots) if isinstance(roots, list) else int(isinstance(roots, str))


def _check_training(options: dict[str, Any], problems: Problems) -> None:
    datasets = section_at(options, "datasets")
    if "slimmable_version" in options:
        problems.add(
            ("slimmable_version",),
            "is for quantsr test, which it makes test one depth; a training has all of network_g.depths; remove it",
        )
    if "train" not in options:
        problems.add(("train",), "missing; training needs this section (optim_g, scheduler, total_iter)")
    if "train" not in datasets:
        problems.add(("datasets", "train"), "missing; add the pictures to train on")
    if any(dataset_phase(key) == "val" for key in datasets):
        if "val_freq" not in section_at(options, "val"):
            problems.add(("val", "val_freq"), "missing; say after how many iterations to validate")
        _check_metrics(options, problems)
    train = section_at(options, "train")
    total = train.get("total_iter")
    scheduler = section_at(train, "scheduler")
    periods = scheduler.get("periods")
    if (
        isinstance(periods, list)
        and all(isinstance(p, (int, float)) for p in periods)
        and isinstance(total, (int, float))
    ) and sum(periods) < total:
        problems.add(
            ("train", "scheduler", "periods"),
            f"end at {sum(periods)}, before total_iter {total}; lengthen them",
        )
    distill = section_at(train, "distill")
    distills = any(
        isinstance(distill.get(key), (int, float)) and distill[key] > 0
        for key in ("output_weight", "feature_weight")
    )
    path = section_at(options, "path")
    if distills and "network_teacher" not in options:
        problems.add(("network_teacher",), "missing; train.distill needs a teacher (type: EDSR, ...)")
    if distills and "pretrain_network_teacher" not in path:
        problems.add(
            ("path", "pretrain_network_teacher"), "missing; train.distill needs the teacher's checkpoint"
        )
    if "network_teacher" in options and not distills:
        problems.add(
            ("train", "distill"),
            "missing or all zero although there is a teacher; set output_weight or remove network_teacher",
        )
    losses = section_at(train, "losses") or {"pix": section_at(train, "pixel_opt")}
    unused = all(isinstance(loss, dict) and loss.get("loss_weight") == 0 for loss in losses.values())
    if unused and not distill.get("output_weight") and not distill.get("soft_weight"):
        problems.add(
            ("train", "pixel_opt", "loss_weight"),
            "is 0 and no other output is learned from; set it, or train.distill.output_weight or soft_weight",
        )
    weighted, given = bool(distill.get("soft_weight")), "dataroot_soft" in section_at(datasets, "train")
    if weighted and not given:
        problems.add(
            ("datasets", "train", "dataroot_soft"), "missing; train.distill.soft_weight needs the pictures"
        )
    if given and not weighted:
        problems.add(
            ("train", "distill", "soft_weight"),
            "missing or zero although there is datasets.train.dataroot_soft; set it",
        )


def _check_test(options: dict[str, Any], problems: Problems) -> None:
    datasets, path = section_at(options, "datasets"), section_at(options, "path")
    if not any(dataset_phase(key) in ("val", "test") for key in datasets):
        problems.add(("datasets",), "no test set; add one under the key test_1 (or val)")
    if "pretrain_network_g" not in path:
        problems.add(("path", "pretrain_network_g"), "missing; name the checkpoint to test")
    _check_metrics(options, problems)
    engine = section_at(options, "val").get("engine", "torch")
    if isinstance(engine, str) and engine != "torch" and is_checkpoint(path.get("pretrain_network_g")):
        problems.add(
            ("val", "engine"),
            f"{engine} runs packed files, and path.pretrain_network_g is a checkpoint; set torch, or make one with "
            "`quantsr export -m CHECKPOINT -o NETWORK.safetensors`",
        )


def _check_metrics(options: dict[str, Any], problems: Problems) -> None:
    if section_at(options, "val").get("metrics", {}) == {}:
        problems.add(
            ("val", "metrics"), "missing; name what to measure, for example psnr: {type: calculate_psnr}"
        )


def _check_registered(options: dict[str, Any], problems: Problems) -> None:
    model = options.get("model_type")
    if isinstance(model, str) and model not in (known := registries.models()):
        problems.add(
            ("model_type",),
            f"no subclass of QuantSRModel is registered as {model!r}; {did_you_mean(model, known)}",
        )
    check_arguments(options, problems)


def _check_final_depth(options: dict[str, Any], depths: Sequence[int] | None, problems: Problems) -> None:
    """Notes what keeps blocks from being removed down to `train.final_depth`."""
    train, key = section_at(options, "train"), ("train", "final_depth")
    final, total = train.get("final_depth"), train.get("total_iter")
    if not isinstance(final, int):
        return
    if depths is None:
        problems.add(key, "this network has one depth only; remove the key")
        return
    if final not in depths[1:]:
        problems.add(key, f"{final} is no lower depth of network_g.depths {list(depths)}; name one of them")
        return
    if train.get("stage1_fraction") != 1:
        problems.add(
            ("train", "stage1_fraction"), "must be 1 with train.final_depth, which trains one depth; set it"
        )
    later = max(depths) - final - 1  # after the first, which needs no validation
    freq = section_at(options, "val").get("val_freq")
    if later and not any(dataset_phase(name) == "val" for name in section_at(options, "datasets")):
        problems.add(
            ("datasets", "val"), "missing; train.final_depth removes blocks at validations, add a set"
        )
    elif later and isinstance(freq, int) and isinstance(total, int) and freq * later > total / 5:
        problems.add(
            ("val", "val_freq"),
            f"{freq} leaves no time to remove {later + 1} blocks in {total} iterations; set at most {total // 5 // later}",
        )


def _check_depths(options: dict[str, Any], bound: dict[str, Any], problems: Problems) -> None:
    depths, blocks = network_depths(bound), depth_units(bound)
    wanted = section_at(options, "val").get("depths")
    if isinstance(wanted, list) and isinstance(blocks, int):
        if depths is None:
            problems.add(("val", "depths"), "this network has one depth only; remove the key")
        else:
            check_depth_list(("val", "depths"), wanted, blocks, problems)
    _check_final_depth(options, depths, problems)
    weights = section_at(options, "train").get("depth_weights")
    if isinstance(weights, list) and depths is not None and len(weights) != len(depths):
        problems.add(
            ("train", "depth_weights"),
            f"{len(weights)} weights for the {len(depths)} depths {depths}; give one each",
        )
