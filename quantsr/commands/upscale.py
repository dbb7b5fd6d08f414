"""`quantsr upscale INPUT... -o DIR_OR_FILE`: files, folders and globs in, upscaled files out."""

from __future__ import annotations

import argparse
import glob
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from quantsr.deploy import image_io
from quantsr.deploy.engines.base import ENGINES
from quantsr.deploy.upscaler import PRECISIONS, Upscaler
from quantsr.errors import InputError, WorkError
from quantsr.trained_files.names import shipped

log = logging.getLogger(__name__)

DEFAULT_MODEL = "quantsr_c_x4_w4a4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `quantsr upscale`."""
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="picture, folder or glob such as 'photos/*.jpg'"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR_OR_FILE", help="folder, or file for a single picture"
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME_OR_FILE",
        help=f"packed network, or one that comes with quantsr: {', '.join(shipped())} (default: %(default)s)",
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="depth to run; smaller ones are faster (default: all)"
    )
    parser.add_argument(
        "--budget-ms",
        type=_positive,
        metavar="MS",
        help="take the deepest sub-network that needs at most MS per picture here",
    )
    parser.add_argument(
        "--engine", default="auto", choices=ENGINES, help="what runs the network (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        default="f32",
        choices=PRECISIONS,
        help="of what OpenVINO does not run as integers: bf16 is faster for QuantSR-T, and not exact (default: %(default)s)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="side of the tiles in input pixels, without overlap (default: what memory allows)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average eight flips and rotations: 8 times slower, slightly better",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--force", action="store_true", help="overwrite existing files (never the input)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 1 where a picture could not be read or written while the others were.

    Raises InputError before any work for a bad network, engine, depth, or output that would overwrite something.
    """
    if args.depth is not None and args.budget_ms is not None:
        raise InputError("--budget-ms: chooses the depth itself; leave out --depth")
    files = find_pictures(args.input)
    upscaler = Upscaler(
        args.model,
        engine=args.engine,
        depth=args.depth,
        tile=args.tile,
        threads=args.threads,
        self_ensemble=args.self_ensemble,
        precision=args.precision,
    )
    jobs = plan_outputs(files, Path(args.output), upscaler.scale, force=args.force)
    failed = 0
    bar = tqdm(jobs, unit="picture", disable=None if len(jobs) > 1 else True)
    for job in bar:
        try:
            line = _upscale(upscaler, job, args.budget_ms)
        except (InputError, WorkError) as error:
            failed += 1
            line = f"error: {error}"
        tqdm.write(line)
    if failed:
        tqdm.write(f"{len(jobs) - failed} of {len(jobs)} pictures upscaled, {failed} failed")
    return 1 if failed else 0


@dataclass(frozen=True)
class Job:
    """A picture to read, and the file that its upscaled picture goes to."""

    source: Path
    target: Path


def find_pictures(inputs: list[str]) -> list[Path]:
    """The files named by paths, folders (their pictures, not those of folders inside) and globs, each once, in order.

    Raises InputError for an input that names nothing.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            matches = sorted(
                p for p in path.iterdir() if p.suffix.lower() in image_io.SUFFIXES and p.is_file()
            )
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            kind = "holds no pictures" if path.is_dir() else "names no file"
            raise InputError(
                f"{text}: {kind}; give a picture ({', '.join(image_io.SUFFIXES)}), a folder or a glob"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def plan_outputs(files: list[Path], output: Path, scale: int, *, force: bool) -> list[Job]:
    """Where each upscaled picture goes: `output` itself for one picture and a picture's suffix, else `output/NAME_xS.suffix`.

    Raises InputError for a picture type that cannot be written, and where a result would overwrite an input, another result, or (without
    `force`) an existing file.
    """
    as_file = output.suffix.lower() in image_io.SUFFIXES and not output.is_dir()
    if as_file and len(files) > 1:
        raise InputError(f"{output}: {len(files)} pictures cannot go to one file; give a folder")
    # `-o a.gif` means a file, `-o out.v2` a folder.
    if not output.exists() and output.suffix.lower() in Image.registered_extensions():
        image_io.check_output(output, deep=False, alpha=False)
    if not as_file and output.is_file():
        raise InputError(
            f"{output}: is a file of no known picture type; give a folder or one of {', '.join(image_io.SUFFIXES)}"
        )
    jobs = [Job(f, output if as_file else output / f"{f.stem}_x{scale}{_writable_suffix(f)}") for f in files]
    inputs = {file.resolve() for file in files}
    seen: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() in inputs:
            raise InputError(f"{job.target}: is an input and is never overwritten; choose another output")
        if job.target in seen:
            raise InputError(
                f"{job.target}: both {seen[job.target]} and {job.source} would go there; upscale them to two folders"
            )
        if os.path.exists(job.target) and not force:  # of a name that is too long, Path.exists raises
            raise InputError(f"{job.target}: exists already; choose another output or give --force")
        seen[job.target] = job.source
    try:
        (output.parent if as_file else output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: the folder cannot be made ({error.strerror}); choose another") from error
    return jobs


def _writable_suffix(file: Path) -> str:
    """The input's own type where it can be written, else PNG."""
    return file.suffix if file.suffix.lower() in image_io.SUFFIXES else ".png"


def _upscale(upscaler: Upscaler, job: Job, budget_ms: float | None) -> str:
    """One picture; returns the line to show."""
    start = time.perf_counter()
    picture = image_io.read(job.source)
    for lost in image_io.check_output(job.target, picture.rgb.itemsize > 1, picture.alpha is not None):
        log.warning("%s: %s files cannot keep %s", job.source, job.target.suffix, lost)
    if budget_ms is not None:
        upscaler.choose_depth(picture.rgb, budget_ms)
    height, width, _ = picture.rgb.shape
    scale = upscaler.scale
    channels = (1 if picture.gray else 3) + (picture.alpha is not None)
    shape = (height * scale, width * scale, *([channels] if channels > 1 else []))

    def bands() -> Iterator[tuple[int, image_io.Pixels]]:
        for top, band in upscaler.bands(picture.rgb, progress=True):
            alpha = (
                None
                if picture.alpha is None
                else image_io.scale_alpha(picture.alpha, scale, top, top + len(band))
            )
            yield top, image_io.merge(band, alpha, picture.gray)

    try:
        image_io.write(job.target, shape, picture.rgb.dtype, bands(), picture.icc)
    except MemoryError:
        raise WorkError(
            f"{job.source}: needs more memory than there is; write to .png, which is done in parts"
        ) from None
    taken = time.perf_counter() - start
    return f"{job.source} -> {job.target} ({width}x{height} -> {width * scale}x{height * scale}, depth {upscaler.depth}, {taken:.2f} s)"


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
