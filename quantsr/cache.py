"""Cache folders for compiled code: private to each user, since their content is executed."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


def private_folder(name: str) -> Path | None:
    """`$XDG_CACHE_HOME/quantsr/NAME` (`~/.cache/quantsr/NAME`) with mode 700; None where that is
    impossible: without a home folder, where nothing can be written, or where the folder belongs to
    another user."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "quantsr" / name
        base.mkdir(parents=True, exist_ok=True)
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
            if not _is_own(each):
                logger.warning("%s: belongs to another user; not used as a cache", each)
                return None
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None


def _is_own(folder: Path) -> bool:
    """Whether the folder is no link and belongs to this user; access by others is removed from its
    mode."""
    if not hasattr(os, "geteuid"):  # Windows, where a user's folders are private
        return True
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(folder, 0o700)
    return True


@functools.cache
def set_compile_cache() -> None:
    """Makes ``torch.compile`` keep its compiled code in a folder of this user, unless
    `$TORCHINDUCTOR_CACHE_DIR` names one.

    Torch's default is a folder in the shared temporary directory, which another user may have
    created.
    """
    if os.environ.get(_INDUCTOR):
        return
    folder = private_folder("torchinductor")
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="quantsr-torchinductor-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_INDUCTOR] = str(folder)
