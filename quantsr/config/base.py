"""Base classes and types of the sections of options: strict types, no unknown keys, no changes
after loading."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from quantsr.errors import InputError
from quantsr.paths import expanded


def whole_number(value: Any) -> Any:
    """A float without a fraction as an integer, as BasicSR's files write ``val_freq: !!float 5e3``;
    other values unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Int = Annotated[int, BeforeValidator(whole_number)]
"""An integer; 5e3 and 5000.0 are accepted, "5000" and true are not."""

SEEDS = 2**63
"""Exclusive limit of seeds; torch accepts all that are below it."""


def folder_name(value: str) -> str:
    """The name itself where it can name a folder below another; else ``ValueError``."""
    if value in (".", "..") or any(sign in value for sign in "/\\\0"):
        raise ValueError(f"{value!r} cannot name a folder; use letters, digits, '_' and '-'")
    return value


FolderName = Annotated[str, AfterValidator(folder_name)]
"""Text that can name a folder."""


def output_folder(value: str) -> str:
    """The path of a folder to write into, with ``~`` expanded; ``ValueError`` where there is no
    such home."""
    try:
        expanded(value)
    except InputError as error:
        raise ValueError(str(error)) from None
    return os.path.expanduser(value)


OutputFolder = Annotated[str, AfterValidator(output_folder)]
"""Path of a folder to write into."""


class Section(BaseModel):
    """One section of the options. Frozen; an unknown key and a value of another type are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def section_at(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The section under ``key`` of unchecked options; empty where the key is absent or holds
    something else."""
    value = options.get(key)
    return value if isinstance(value, dict) else {}


class Registered(Section):
    """A section whose ``type`` is a registered name; every other key is an argument of the class or
    function of that name.

    The fields that a subclass declares have their types checked here, other arguments by
    `quantsr.config.binding`.
    """

    model_config = ConfigDict(extra="allow")

    type: str

    def given(self) -> dict[str, Any]:
        """The keys beside ``type`` that the section gives."""
        return self.model_dump(exclude={"type"}, exclude_unset=True, exclude_none=True)

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call; those that the section leaves out keep the constructor's
        defaults."""
        return self.given()

    def flat(self) -> dict[str, Any]:
        """The section as an option file has it."""
        return {"type": self.type, **self.given()}
