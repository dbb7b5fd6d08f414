"""The options as a whole: one frozen :class:`Options` object holds all settings of a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from quantsr.config.base import SEEDS, FolderName, Int, Section, whole_number
from quantsr.config.sections import (
    DatasetOptions,
    DistOptions,
    IOBackendOptions,
    LoggerOptions,
    MetricOptions,
    NetworkOptions,
    PathOptions,
    ValOptions,
    WandbOptions,
)
from quantsr.config.training import (
    DistillOptions,
    LossOptions,
    OptimizerOptions,
    SchedulerOptions,
    TrainOptions,
)

__all__ = [
    "DatasetOptions",
    "DistOptions",
    "DistillOptions",
    "IOBackendOptions",
    "LoggerOptions",
    "LossOptions",
    "MetricOptions",
    "NetworkOptions",
    "OptimizerOptions",
    "Options",
    "PathOptions",
    "SchedulerOptions",
    "TrainOptions",
    "ValOptions",
    "WandbOptions",
    "dataset_phase",
]

_DATASET_KEY = re.compile(r"(train|val|test)(?:_\w+)?")


def dataset_phase(key: str) -> str | None:
    """The phase that a data-set key stands for: ``"train"``, ``"val"`` or ``"test"``; None for any
    other key."""
    match = _DATASET_KEY.fullmatch(key)
    return match.group(1) if match and key != f"{match.group(1)}_" and not key.startswith("train_") else None


class Options(Section):
    """All options of one run. Made by :func:`quantsr.config.load_options`, never changed
    afterwards."""

    name: FolderName = Field(min_length=1, description="Name of the run, and of its folder.")
    model_type: str = Field(
        default="QuantSRModel",
        description="Name of a registered model class, which makes the training step: `QuantSRModel` (`SRModel`, the name in BasicSR's files, "
        "means the same here) or a subclass of it.",
    )
    scale: Annotated[Literal[2, 3, 4], BeforeValidator(whole_number)] = Field(
        description="Upscaling factor: 2, 3 or 4; equals `network_g.upscale`."
    )
    num_gpu: Literal["auto"] | Int = Field(
        default="auto",
        description="CUDA devices: `auto` (one for each process, where there are any), 0 (CPU) or a number; without CUDA the CPU is used, with a warning.",
    )
    manual_seed: Int = Field(
        default=0,
        ge=0,
        lt=SEEDS,
        description="Seed of every random number.",
        json_schema_extra={"takes": "a whole number >= 0 and < 2**63"},
    )
    slimmable_version: Int | None = Field(
        default=None,
        ge=0,
        le=2,
        description="QuantSR's key, for tests: test one depth only, as its released code cuts it; 0 full, 1 half, 2 quarter.",
    )
    datasets: dict[str, DatasetOptions] = Field(
        description="Data sets by key: `train`, `val`, `val_*`, `test`, `test_*`."
    )
    network_g: NetworkOptions = Field(
        description="The network. A test may leave it and `scale` out where the checkpoint describes its network, as those of "
        "`quantsr train`, packed files and the networks that come with quantsr do."
    )
    network_teacher: NetworkOptions | None = Field(
        default=None, description="Float teacher for `train.distill`."
    )
    path: PathOptions = Field(default_factory=PathOptions, description="Checkpoints and folders.")
    train: TrainOptions | None = Field(default=None, description="Training; needed by `quantsr train`.")
    val: ValOptions | None = Field(default=None, description="Evaluation.")
    logger: LoggerOptions = Field(default_factory=LoggerOptions, description="Logs and checkpoints.")
    dist_params: DistOptions = Field(default_factory=DistOptions, description="Training on several devices.")
    find_unused_parameters: bool = Field(
        default=False, description="Passed to torch's DistributedDataParallel."
    )
    auto_resume: bool = Field(
        default=False,
        description="Resume from the newest training state of the run of this name, if there is one.",
    )

    @field_validator("num_gpu")
    @classmethod
    def _not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"must be auto or a whole number >= 0, got {value}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, value: Any) -> Any:
        """Fill in values that follow from other keys: the phase of each data set, the border of
        each metric."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        datasets, val = value.get("datasets"), value.get("val")
        if isinstance(datasets, dict):
            value["datasets"] = {
                key: {"phase": dataset_phase(str(key)) or "test", **entry}
                if isinstance(entry, dict)
                else entry
                for key, entry in datasets.items()
            }
        if isinstance(val, dict) and isinstance(val.get("metrics"), dict):
            scale = whole_number(value.get("scale"))
            # where the scale is no integer, that is the problem to report
            border = {"crop_border": scale if type(scale) is int else 0}
            metrics = {k: {**border, **m} if isinstance(m, dict) else m for k, m in val["metrics"].items()}
            value["val"] = {**val, "metrics": metrics}
        return value

    def sets(self, *phases: str) -> dict[str, DatasetOptions]:
        """The data sets for these phases (``"train"``, ``"val"``, ``"test"``), by key, in the order
        of the file."""
        return {key: dataset for key, dataset in self.datasets.items() if dataset.phase in phases}

    def evaluation_sets(self) -> dict[str, DatasetOptions]:
        """The sets that a test run evaluates: `test` sets, or `val` sets where there are none."""
        return self.sets("test") or self.sets("val")

    @property
    def experiment_folder(self) -> str:
        """Folder of this training run."""
        return os.path.join(self.path.experiments_root, self.name)

    @property
    def results_folder(self) -> str:
        """Folder of this test run."""
        return os.path.join(self.path.results_root, self.name)

    def dump(self) -> dict[str, Any]:
        """The options as plain dicts, lists and scalars, in the layout of an option file; loading
        them gives equal options."""
        plain = self.model_dump(exclude_none=True)
        for key in ("network_g", "network_teacher"):
            network = getattr(self, key)
            if network is not None:
                plain[key] = _plain(network.flat())
        for dataset in plain["datasets"].values():
            del dataset["phase"]
        if self.train is not None:
            train = plain["train"]
            train["optim_g"] = self.train.optim_g.flat()
            train["scheduler"] = self.train.scheduler.flat()
            train["losses"] = {name: loss.flat() for name, loss in self.train.losses.items()}
            train["pixel_opt"] = self.train.pixel_opt.flat()
            del train["pixel_opt" if self.train.losses else "losses"]
        return plain

    def config_hash(self) -> str:
        """Twelve hexadecimal digits that change with any option except those for resuming.

        Keys at their default are left out, so that a file keeps its hash when an option is added to
        the schema.
        """
        plain = self.model_dump(
            exclude_defaults=True, exclude={"auto_resume": True, "path": {"resume_state"}}
        )
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

    def basicsr_dict(self, is_train: bool) -> dict[str, Any]:
        """The options as BasicSR's classes expect them after its own parsing: a new dict that they
        may change.

        ``num_gpu: auto`` is kept; the caller replaces it by the number of devices.
        """
        opt = self.dump()
        for key, dataset in opt["datasets"].items():
            dataset.update(phase=self.datasets[key].phase, scale=self.scale)
        root = self.experiment_folder if is_train else self.results_folder
        opt["path"].update(log=root, visualization=os.path.join(root, "visualization"))
        if is_train:
            opt["path"].update(
                experiments_root=root,
                models=os.path.join(root, "models"),
                training_states=os.path.join(root, "training_states"),
            )
        else:
            opt["path"]["results_root"] = root
        opt.update(is_train=is_train, dist=False, rank=0, world_size=1, root_path=os.curdir)
        return opt


def _plain(value: Any) -> Any:
    """The value with tuples as lists, so that it can be written as YAML and JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
