"""`quantsr upscale INPUT... -o DIR_OR_FILE`: upscales the pictures of files, folders and globs."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator

from tqdm import tqdm

from quantsr import terminal
from quantsr.commands.upscale_files import Job, find_pictures, plan_outputs
from quantsr.deploy.engines.names import ENGINES
from quantsr.deploy.upscale import image_io
from quantsr.deploy.upscale.upscaler import PRECISIONS, Upscaler
from quantsr.errors import InputError, WorkError, one_line
from quantsr.paths import expanded
from quantsr.pictures.formats import MAX_PIXELS, DamagedError, pixel_limit
from quantsr.pictures.transparency import fill_hidden, on_white, scale_alpha
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
        help="run the deepest sub-network that takes at most MS per picture on this machine",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=ENGINES,
        help="engine that runs the network (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        default="f32",
        choices=PRECISIONS,
        help="precision of layers that OpenVINO does not run in integers: bf16 is faster for QuantSR-T, and not exact (default: %(default)s)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="side of the tiles in input pixels, without overlap (default: as large as memory allows)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average eight flips and rotations: 8 times slower, slightly better",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--max-pixels",
        type=_count,
        metavar="N",
        help=f"refuse larger pictures (default: QUANTSR_MAX_PIXELS of the environment, or {MAX_PIXELS})",
    )
    parser.add_argument(
        "--accept-truncated",
        action="store_true",
        help="upscale files that end early as far as they can be decoded; the rest is black",
    )
    parser.add_argument(
        "--keep-hidden-colour",
        action="store_true",
        help="upscale the stored colours of fully transparent pixels, for textures; they show along edges "
        "(default: replace them by the nearest visible colour)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files (never the input)")


def run(args: argparse.Namespace) -> int:
    """Upscales all pictures. Returns 0, or 1 where some pictures could not be read or written.

    Raises InputError before any work for a bad network, engine or depth, or for an output that
    would overwrite a file.
    """
    if args.depth is not None and args.budget_ms is not None:
        raise InputError("--budget-ms: chooses the depth itself; leave out --depth")
    args.max_pixels = args.max_pixels or pixel_limit()
    output = expanded(args.output)
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
    jobs = plan_outputs(files, output, upscaler.scale, force=args.force)
    failed = 0
    for job in tqdm(jobs, unit="picture", disable=len(jobs) == 1 or not terminal.has_terminal()):
        try:
            line = _upscale(upscaler, job, args)
        except (InputError, WorkError, MemoryError) as error:
            failed += 1
            line = f"error: {_reason(error, job)}"
        terminal.show(one_line(line))
    if failed:
        terminal.show(f"{len(jobs) - failed} of {len(jobs)} pictures upscaled, {failed} failed")
    return 1 if failed else 0


def _reason(error: Exception, job: Job) -> str:
    if isinstance(error, MemoryError):
        return f"{job.source}: needs more memory than there is; write to .png, which is done in parts"
    if isinstance(error, DamagedError):
        return f"{error} --accept-truncated upscales a truncated one as far as it can be decoded"
    return str(error)


def _upscale(upscaler: Upscaler, job: Job, args: argparse.Namespace) -> str:
    """Upscales one picture; returns the line to print."""
    start = time.perf_counter()
    picture = image_io.read(job.source, limit=args.max_pixels, accept_truncated=args.accept_truncated)
    suffix = job.target.suffix.lower()
    flat = picture.alpha is not None and suffix in image_io.NO_ALPHA
    channels = (1 if picture.gray else 3) + (picture.alpha is not None and not flat)
    height, width, _ = picture.rgb.shape
    scale = upscaler.scale
    shape = (height * scale, width * scale, *([channels] if channels > 1 else []))
    image_io.check_size(job.target, shape, picture.rgb.itemsize)
    for note in picture.notes:
        log.warning("%s: %s", one_line(str(job.source)), note)
    for lost in image_io.losses(job.target, picture):
        log.warning("%s: %s files cannot keep %s", one_line(str(job.source)), suffix, lost)
    rgb = picture.rgb if args.keep_hidden_colour else fill_hidden(picture.rgb, picture.alpha)
    if args.budget_ms is not None:
        upscaler.choose_depth(rgb, args.budget_ms)

    def bands() -> Iterator[tuple[int, image_io.Pixels]]:
        for top, band in upscaler.bands(rgb, progress=True):
            alpha = picture.alpha
            if alpha is not None:
                alpha = scale_alpha(alpha, scale, top, top + len(band))
            if alpha is not None and flat:
                band, alpha = on_white(band, alpha), None
            yield top, image_io.merge(band, alpha, picture.gray)

    image_io.write(job.target, shape, rgb.dtype, bands(), icc=picture.icc, exif=picture.exif, dpi=picture.dpi)
    taken = time.perf_counter() - start
    return f"{job.source} -> {job.target} ({width}x{height} -> {width * scale}x{height * scale}, depth {upscaler.depth}, {taken:.2f} s)"


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
