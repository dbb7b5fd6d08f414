"""The schema of a comparison file, and the classes of its runs. ``compare.py`` reads the file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator, model_validator

from quantsr.config.base import SEEDS, Int, OutputFolder, Section
from quantsr.config.problems import did_you_mean
from quantsr.config.schema import Options

MAX_RUNS = 1000


class CompareOptions(Section):
    """A comparison: every variant is trained with every seed and evaluated on the same sets."""

    name: str = Field(min_length=1, description="Name of the comparison; its folder is `compare_NAME`.")
    base: dict[str, Any] = Field(
        description="The training that every variant starts from: a training option file, or a section that names it under `_base_` and "
        "changes keys of it. Paths of files are relative to this file.",
        json_schema_extra={"takes": "text or a section (keys below it)"},
    )
    variants: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="By name, what each variant changes: `key.sub: value` or sections, merged as `_base_` merges; null removes a key.",
    )
    seeds: list[Int] = Field(
        min_length=1, description="Values of `manual_seed`; one run per variant and seed."
    )
    reference: str | None = Field(
        default=None,
        description="The variant from which differences are counted, paired by seed; default the first.",
    )
    datasets: dict[str, Any] | None = Field(
        default=None,
        description="Test sets, `test` or `test_*`, as in a test option file; default those of the base, or its `val` sets.",
    )
    val: dict[str, Any] | None = Field(
        default=None,
        description="Changes of the section `val` for the evaluation, such as `depths` or `metrics`; training keeps `base.val`.",
    )
    costs: bool = Field(
        default=True,
        description="Whether the tables have columns of costs: packed bytes, BitOPs, and milliseconds measured on this machine.",
    )
    experiments_root: OutputFolder = Field(
        default="experiments", min_length=1, description="Folder that holds one folder per comparison."
    )

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.+-]+", value):
            raise ValueError(f"{value!r} cannot name a folder; use letters, digits, '_' and '-'")
        return value

    @field_validator("variants")
    @classmethod
    def _folder_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = [name for name in value if not re.fullmatch(r"[\w+-][\w.+-]*", name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot name a folder; use letters, digits, '_' and '-'")
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        wrong = [seed for seed in value if not 0 <= seed < SEEDS]
        if wrong:
            raise ValueError(f"must be whole numbers >= 0 and < 2**63, got {wrong[0]}")
        if len(set(value)) != len(value):
            raise ValueError(f"the same seed twice in {value}; remove one")
        return value

    @model_validator(mode="after")
    def _not_too_many(self) -> CompareOptions:
        if (count := len(self.variants) * len(self.seeds)) > MAX_RUNS:
            raise ValueError(
                f"variants and seeds make {count} runs, more than {MAX_RUNS}; write several files"
            )
        return self

    @model_validator(mode="after")
    def _known_reference(self) -> CompareOptions:
        if self.reference is not None and self.reference not in self.variants:
            raise ValueError(
                f"reference: no variant {self.reference!r}; {did_you_mean(self.reference, self.variants)}"
            )
        return self

    @property
    def folder(self) -> str:
        """Folder of the comparison."""
        return os.path.join(self.experiments_root, f"compare_{self.name}")

    @property
    def difference_to(self) -> str:
        """The reference variant."""
        return self.reference or next(iter(self.variants))


@dataclass(frozen=True)
class Run:
    """One training of a comparison.

    Attributes:
        variant, seed: of this run.
        training: its options, as `quantsr train` would use them.
        evaluation: options to evaluate its network, as `quantsr test` would use them.
        after: names of the runs of the same seed whose networks it starts from.
    """

    variant: str
    seed: int
    training: Options
    evaluation: Options
    after: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        return run_name(self.variant, self.seed)


@dataclass(frozen=True)
class Comparison:
    """A checked comparison file.

    Attributes:
        options: the file.
        runs: each one after the runs that it starts from; all variants of a seed before the next
            seed.
        changes: for each variant its changes of the base, by dotted key; None for a removed key.
        baseline: whether the tables have a row for bicubic.
        base: the options of the base, as a file holds them.
    """

    options: CompareOptions
    runs: tuple[Run, ...]
    changes: dict[str, dict[str, Any]]
    baseline: bool
    base: dict[str, Any]

    def dump(self) -> dict[str, Any]:
        """The comparison as a self-contained file, with all inherited options written out."""
        return {**self.options.model_dump(exclude_none=True), "base": self.base}


def run_name(variant: str, seed: int) -> str:
    """The name of a run: ``VARIANT_seedN``."""
    return f"{variant}_seed{seed}"
