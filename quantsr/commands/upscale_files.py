"""The files that `quantsr upscale` reads, and those that it writes."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from quantsr.deploy.upscale import image_io
from quantsr.errors import InputError, WorkError
from quantsr.files import is_impossible
from quantsr.pictures.names import SUFFIXES, pictures_in


@dataclass(frozen=True)
class Job:
    """A picture file to read, and the file to write its upscaled picture to."""

    source: Path
    target: Path


def find_pictures(inputs: list[str]) -> list[Path]:
    """The files named by paths, folders (the pictures directly in them) and globs, each once, in
    order.

    The name of an existing file is used literally, even with glob characters; other names are
    globs.

    Raises InputError for an input without any file.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text if os.path.lexists(text) else os.path.expanduser(text))
        if os.path.isdir(path):
            matches = _pictures_of(path)
        elif os.path.isfile(path):
            matches = [path]
        elif os.path.exists(path):
            raise InputError(f"{text}: is no regular file; give a picture, a folder or a glob")
        else:
            matches = _globbed(path)
        if not matches:
            kind = "holds no pictures" if path.is_dir() else "names no file"
            raise InputError(
                f"{text}: {kind}; give a picture ({', '.join(sorted(SUFFIXES))}), a folder or a glob"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _pictures_of(folder: Path) -> list[Path]:
    try:
        return pictures_in(folder)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _globbed(path: Path) -> list[Path]:
    """The files that a pattern matches. Existing folders at its beginning are used literally, and
    where nothing matches, brackets too."""
    literal, parts = Path(), list(path.parts)
    while parts and os.path.lexists(literal / parts[0]):
        literal /= parts.pop(0)
    for rest in (parts, [part.replace("[", "[[]") for part in parts]):
        names = glob.glob(os.path.join(glob.escape(str(literal)), *rest), recursive=True)
        if files := sorted(Path(name) for name in names if os.path.isfile(name)):
            return files
    return []


def plan_outputs(files: list[Path], output: Path, scale: int, *, force: bool) -> list[Job]:
    """The output file of each picture: `output` itself for one picture where it has a picture's
    suffix, else `output/NAME_xS.suffix`.

    Raises InputError for a picture type that cannot be written, and where a result would overwrite
    an input, another result, or (without `force`) an existing file; WorkError where the folder
    cannot be made.
    """
    as_file = output.suffix.lower() in image_io.SUFFIXES and not os.path.isdir(output)
    if as_file and len(files) > 1:
        raise InputError(f"{output}: {len(files)} pictures cannot go to one file; give a folder")
    # `-o a.gif` means a file, `-o out.v2` a folder.
    if not os.path.exists(output) and output.suffix.lower() in Image.registered_extensions():
        image_io.check_type(output)
    if not as_file and os.path.isfile(output):
        raise InputError(
            f"{output}: is a file of no known picture type; give a folder or one of {', '.join(image_io.SUFFIXES)}"
        )
    jobs = [Job(f, output if as_file else output / f"{f.stem}_x{scale}{_writable_suffix(f)}") for f in files]
    inputs = {os.path.realpath(file) for file in files}
    seen: dict[Path, Path] = {}
    for job in jobs:
        if os.path.realpath(job.target) in inputs:
            raise InputError(f"{job.target}: is an input and is never overwritten; choose another output")
        if job.target in seen:
            raise InputError(
                f"{job.target}: both {seen[job.target]} and {job.source} would go there; upscale them to two folders"
            )
        # not Path.exists, which raises for names that are too long
        if os.path.exists(job.target) and not force:
            raise InputError(f"{job.target}: exists already; choose another output or give --force")
        seen[job.target] = job.source
    try:
        (output.parent if as_file else output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = InputError if is_impossible(error) else WorkError
        raise kind(f"{output}: the folder cannot be made ({error.strerror}); choose another") from error
    return jobs


def _writable_suffix(file: Path) -> str:
    """The suffix of the input where this type can be written, else that of PNG."""
    return file.suffix if file.suffix.lower() in image_io.SUFFIXES else ".png"
