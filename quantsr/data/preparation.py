"""Preparation of data sets, picture by picture, for ``quantsr prepare``. Files that exist are
skipped unless ``force`` is given."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

from quantsr import terminal
from quantsr.data.images import encode_png, is_written, picture_size, read_rgb, write_file
from quantsr.data.resize import U8, imresize_uint8, mod_crop
from quantsr.errors import InputError, WorkError
from quantsr.files import is_impossible
from quantsr.pictures.listing import list_images, pair_up
from quantsr.temporary import folder_beside, replace_folder

#: Benchmark pictures are cropped so that x2, x3 and x4 divide their sides.
BENCHMARK_MULTIPLE = 12

#: Bytes of an LMDB's map size beside the pictures themselves.
_LMDB_OVERHEAD = 64 << 20


def for_each(work: Callable[[Path], int], paths: Sequence[Path], *, jobs: int, label: str) -> int:
    """Runs ``work`` on every path, in ``jobs`` processes, under a progress bar; returns the sum of
    the results.

    Raises:
        InputError, WorkError: of the first picture that fails; files already written stay.
    """
    total = 0
    if jobs <= 1:
        for path in tqdm(paths, desc=label, unit="picture", disable=not terminal.has_terminal()):
            total += work(path)
        return total
    with _processes(jobs) as pool:
        futures = [pool.submit(work, path) for path in paths]
        for future in tqdm(
            as_completed(futures),
            total=len(futures),
            desc=label,
            unit="picture",
            disable=not terminal.has_terminal(),
        ):
            total += future.result()
    return total


@contextlib.contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end with this one; an error cancels the work that has not begun.

    Raises:
        WorkError: one of them died.
    """
    with ProcessPoolExecutor(jobs, initializer=_end_with_parent) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise WorkError(f"a process died ({error}); free memory, or lower --jobs") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Ends this process when its parent is killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def one_per_stem(paths: Sequence[Path]) -> Sequence[Path]:
    """The paths as they are, if no two would be written under the same name.

    Raises:
        InputError: two differ only in their suffix.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"{path}: {other.name} has the same name; both would be written as {path.stem}.png; rename one"
            )
    return paths


def write_bicubic(path: Path, target: Path, scales: Sequence[int], force: bool) -> int:
    """Writes ``target/X{s}/{stem}x{s}.png`` for each scale that is missing; returns how many were
    written."""
    goals = {scale: target / f"X{scale}" / f"{path.stem}x{scale}.png" for scale in scales}
    missing = {scale: goal for scale, goal in goals.items() if force or not is_written(goal)}
    if not missing:
        return 0
    img = read_rgb(path)
    if min(img.shape[:2]) < max(missing):
        raise InputError(f"{path}: {img.shape[1]}x{img.shape[0]} is too small for x{max(missing)}; remove it")
    for scale, goal in missing.items():
        write_file(goal, encode_png(imresize_uint8(mod_crop(img, scale), 1 / scale)))
    return len(missing)


def make_bicubic(source: Path, target: Path, scales: Sequence[int], *, jobs: int, force: bool) -> int:
    """LR folders ``X2``, ``X3``, ... beside each other, from the pictures of a folder; returns the
    files written."""
    work = partial(write_bicubic, target=target, scales=tuple(scales), force=force)
    return for_each(work, one_per_stem(list_images(source)), jobs=jobs, label="bicubic")


def write_benchmark(path: Path, target: Path, scales: Sequence[int], force: bool) -> int:
    """Writes ``HR/{stem}.png``, cropped to multiples of 12, and its LR pictures; returns how many
    were written."""
    goal = target / "HR" / f"{path.stem}.png"
    written = 0
    if force or not is_written(goal):
        img = mod_crop(read_rgb(path), BENCHMARK_MULTIPLE)
        if img.size == 0:
            raise InputError(f"{path}: smaller than {BENCHMARK_MULTIPLE} pixels; remove it")
        write_file(goal, encode_png(img))
        written = 1
    return written + write_bicubic(goal, target / "LR_bicubic", scales, force)


def make_benchmark(source: Path, target: Path, scales: Sequence[int], *, jobs: int, force: bool) -> int:
    """A benchmark set in the usual layout from a folder of pictures; returns the files written."""
    paths = one_per_stem(list_images(source))
    if os.path.realpath(target / "HR") == os.path.realpath(source):
        raise InputError(f"{target}: its HR folder is the source itself; name another output folder")
    work = partial(write_benchmark, target=target, scales=tuple(scales), force=force)
    return for_each(work, paths, jobs=jobs, label="benchmark")


def starts(length: int, size: int, step: int) -> list[int]:
    """The positions of sub-images along one side: every ``step``, and one more that ends at the
    border. Empty where ``length`` < ``size``."""
    if length < size:
        return []
    found = list(range(0, length - size + 1, step))
    if found[-1] + size < length:
        found.append(length - size)
    return found


def write_subimages(
    pair: tuple[Path, Path | None],
    target: Path,
    lq_target: Path | None,
    scale: int,
    size: int,
    step: int,
    force: bool,
) -> int:
    """Cuts one picture, and its LR at the same places; returns the files written.

    Sub-images are called ``{stem}_s001.png`` ... in both folders, in BasicSR's order (from left to
    right, then down).
    """
    path, lq_path = pair
    img = mod_crop(read_rgb(path), scale)
    lq: U8 | None = None
    if lq_target is not None:
        lq = imresize_uint8(img, 1 / scale) if lq_path is None else read_rgb(lq_path)
        if lq.shape[0] * scale != img.shape[0] or lq.shape[1] * scale != img.shape[1]:
            raise InputError(
                f"{lq_path}: is not the x{scale} LR of {path.name}; check --lq, --filename-tmpl and --scale"
            )
    written = number = 0
    for top in starts(img.shape[0], size, step):
        for left in starts(img.shape[1], size, step):
            number += 1
            name = f"{path.stem}_s{number:03d}.png"
            if force or not is_written(target / name):
                write_file(target / name, encode_png(img[top : top + size, left : left + size]))
                written += 1
            if lq is not None and lq_target is not None and (force or not is_written(lq_target / name)):
                y, x, side = top // scale, left // scale, size // scale
                write_file(lq_target / name, encode_png(lq[y : y + side, x : x + side]))
                written += 1
    return written


def make_subimages(
    source: Path,
    target: Path,
    *,
    lq_source: Path | None,
    lq_target: Path | None,
    filename_tmpl: str,
    scale: int,
    size: int,
    step: int,
    jobs: int,
    force: bool,
) -> int:
    """Sub-images of a folder, with their LR if ``lq_target`` is given; returns the files
    written."""
    if size % scale or step % scale:
        raise InputError(f"--size {size} and --step {step} must be multiples of --scale {scale}; change them")
    paths = one_per_stem(list_images(source))
    if not any(min(picture_size(path)) >= size for path in paths):
        raise InputError(f"{source}: no picture is at least {size}x{size}; lower --size")
    pairs: list[tuple[Path, Path | None]] = [(path, None) for path in paths]
    if lq_source is not None:
        pairs = list(pair_up(paths, lq_source, filename_tmpl))
    partners = dict(pairs)
    work = partial(
        _subimages_of,
        partners,
        target=target,
        lq_target=lq_target,
        scale=scale,
        size=size,
        step=step,
        force=force,
    )
    return for_each(work, paths, jobs=jobs, label="sub-images")


def _subimages_of(
    partners: dict[Path, Path | None],
    path: Path,
    target: Path,
    lq_target: Path | None,
    scale: int,
    size: int,
    step: int,
    force: bool,
) -> int:
    return write_subimages((path, partners[path]), target, lq_target, scale, size, step, force)


def lmdb_key(path: Path, strip: str) -> str:
    """The key of a picture: its name without suffix and without ``strip`` at the end (``x4`` of an
    LR picture).

    Raises:
        InputError: BasicSR's reader could not read the picture under this key.
    """
    key = path.stem.removesuffix(strip) if strip else path.stem
    if not key or "." in key or not key.isascii():
        raise InputError(f"{path}: an LMDB key must be ASCII without dots; rename the file")
    return key


def make_lmdb(source: Path, target: Path, *, strip: str, compression: int, jobs: int, force: bool) -> int:
    """Writes the pictures of a folder into an LMDB of BasicSR's format, as PNG; returns how many.

    It is written beside the target and renamed when complete.

    Raises:
        InputError: the target exists already or is no LMDB, or two pictures have the same key.
        WorkError: it cannot be written; an earlier LMDB is intact.
    """
    import lmdb

    if target.suffix != ".lmdb":
        raise InputError(f"{target}: an LMDB folder of BasicSR must end in .lmdb; rename the output")
    if target.exists() and not force:
        raise InputError(f"{target}: exists already; remove it or pass --force")
    if target.exists() and not (target / "data.mdb").exists():
        raise InputError(f"{target}: is no LMDB folder, so it is not replaced; remove it yourself")
    paths = list_images(source)
    keys = [lmdb_key(path, strip) for path in paths]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{source}: two pictures have the key {twice}; rename one")
    order = sorted(zip(keys, paths, strict=True))
    map_size = _LMDB_OVERHEAD + 2 * sum(_raw_bytes(path) for path in paths)
    try:
        with folder_beside(target) as work:
            made = work / "made.lmdb"
            _write_lmdb(order, made, map_size=map_size, compression=compression, jobs=jobs)
            replace_folder(made, target)
    except (lmdb.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2]
        what = f"{target}: cannot be written ({reason})"
        if isinstance(error, OSError) and is_impossible(error):
            raise InputError(f"{what}; choose another folder") from None
        raise WorkError(f"{what}; free some space or choose another folder") from None
    return len(order)


def _write_lmdb(
    order: Sequence[tuple[str, Path]], target: Path, *, map_size: int, compression: int, jobs: int
) -> None:
    """Writes pictures by their keys into a new LMDB.

    Raises:
        lmdb.Error, OSError: it cannot be written.
    """
    from quantsr.basicsr_compat import LmdbMaker

    maker = LmdbMaker(str(target), map_size=map_size, compress_level=compression)
    encode = partial(_encoded, compression=compression)
    try:
        with _processes(max(1, jobs)) as pool:
            contents: Iterable[tuple[bytes, tuple[int, ...]]] = pool.map(
                encode, [path for _, path in order], chunksize=4
            )
            for (key, _), (content, shape) in zip(
                order,
                tqdm(
                    contents,
                    total=len(order),
                    desc="lmdb",
                    unit="picture",
                    disable=not terminal.has_terminal(),
                ),
                strict=True,
            ):
                maker.put(content, key, shape)
        maker.close()
    except BaseException:
        maker.env.close()
        with contextlib.suppress(OSError):  # on a full disk, flushing the list fails too
            maker.txt_file.close()
        raise


def _encoded(path: Path, compression: int) -> tuple[bytes, tuple[int, ...]]:
    img = read_rgb(path)
    return encode_png(img, compression), img.shape


def _raw_bytes(path: Path) -> int:
    height, width = picture_size(path)
    return 3 * height * width
