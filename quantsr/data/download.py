"""Official download addresses of DIV2K, with the MD5 sums of the archives, and a downloader that
resumes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from quantsr.errors import InputError, WorkError
from quantsr.files import is_impossible
from quantsr.temporary import folder_beside, replace_folder

_BASE = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A zip archive: its address, its MD5 sum, and the folder it unpacks to."""

    file: str
    md5: str
    folder: str

    @property
    def url(self) -> str:
        """Where it is downloaded from."""
        return _BASE + self.file


ARCHIVES = {
    "div2k-train": Archive("DIV2K_train_HR.zip", "bdc2d9338d4e574fe81bf7d158758658", "DIV2K_train_HR"),
    "div2k-valid": Archive("DIV2K_valid_HR.zip", "9fcdda83005c5e5997799b69f955ff88", "DIV2K_valid_HR"),
    "div2k-train-x2": Archive(
        "DIV2K_train_LR_bicubic_X2.zip", "9a637d2ef4db0d0a81182be37fb00692", "DIV2K_train_LR_bicubic/X2"
    ),
    "div2k-train-x3": Archive(
        "DIV2K_train_LR_bicubic_X3.zip", "ad80b9fe40c049a07a8a6c51bfab3b6d", "DIV2K_train_LR_bicubic/X3"
    ),
    "div2k-train-x4": Archive(
        "DIV2K_train_LR_bicubic_X4.zip", "76c43ec4155851901ebbe8339846d93d", "DIV2K_train_LR_bicubic/X4"
    ),
}

#: Data sets without a permanent address for a plain download: where to find them, and the next
#: step.
BY_HAND = {
    "flickr2k": "https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar (with DIV2K this is DF2K)",
    "benchmarks": "Set5, Set14, B100, Urban100 and Manga109: from their authors; then `quantsr prepare benchmark`",
}


def download(name: str, target: Path, *, force: bool = False, base: str | None = None) -> Path:
    """Downloads, checks and unpacks an archive into ``target``; returns the folder of pictures.

    A partial download is resumed. The archive is unpacked into a temporary folder, which is renamed
    when complete; then the archive is removed.

    Raises:
        InputError: unknown name, or the folder exists already and ``force`` is not given.
        FolderLockedError: another process downloads it.
        WorkError: the network, the checksum or the disk failed.
    """
    if name not in ARCHIVES:
        raise InputError(f"{name}: unknown data set; known are {', '.join(ARCHIVES)}")
    archive = ARCHIVES[name]
    folder = target / archive.folder
    if folder.exists() and not force:
        raise InputError(f"{folder}: exists already; remove it or pass --force")
    local = target / archive.file
    url = base + archive.file if base else archive.url
    with _disk_failures(local), folder_beside(local) as work:
        _fetch(url, local)
        if _md5(local) != archive.md5:
            local.unlink()
            raise WorkError(
                f"{local}: its checksum is not {archive.md5}; the download was damaged, try again"
            )
        _unpack(local, work)
        if not (work / archive.folder).is_dir():
            raise WorkError(f"{local}: holds no folder {archive.folder}; unpack it yourself")
        replace_folder(work / archive.folder, folder)
        local.unlink()
    return folder


@contextlib.contextmanager
def _disk_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path}: cannot be written ({error.strerror or error})"
        if is_impossible(error):
            raise InputError(f"{what}; choose another folder") from None
        raise WorkError(
            f"{what}; free some space or choose another folder, and run the command again to resume"
        ) from None


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip file.

    Raises:
        WorkError: it is damaged.
        OSError: the disk is full, ...
    """
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise WorkError(
            f"{archive}: cannot be unpacked ({error}); remove it and download it again"
        ) from error


def _fetch(url: str, local: Path) -> None:
    part = local.with_name(local.name + ".part")
    if local.exists():
        return
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            if answer.status != 206:
                have = 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with _disk_failures(part):
                out = part.open("ab" if have else "wb")
            with (
                out,
                tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=local.name) as bar,
            ):
                while chunk := answer.read(_CHUNK):
                    with _disk_failures(part):
                        out.write(chunk)
                        out.flush()
                    bar.update(len(chunk))
        if total and part.stat().st_size != total:
            raise WorkError(f"{url}: the connection ended early; run the command again to resume")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is the whole file
            os.replace(part, local)
            return
        raise WorkError(
            f"{url}: cannot be downloaded (HTTP {error.code}); download it yourself to {local}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise WorkError(
            f"{url}: cannot be downloaded ({reason}); check the network, or download it yourself to {local}"
        ) from None
    with _disk_failures(local):
        os.replace(part, local)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
