"""OpenCV's decoders, with their log switched off: callers report failures in one line."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

if hasattr(cv2, "setLogLevel"):  # OpenCV 4
    cv2.setLogLevel(0)
else:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

AS_STORED = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
"""Flags for all bits and channels of a file, BGR or BGRA."""
AS_RGB = cv2.IMREAD_COLOR
"""Flags for three channels of 8 bits, BGR, with EXIF orientation applied."""


def decode(content: bytes | memoryview, flags: int) -> NDArray[Any]:
    """`cv2.imdecode`. Raises ValueError where it fails."""
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if len(content) else None
    except cv2.error as error:
        raise ValueError(str(error.err).strip() or "OpenCV cannot decode it") from error
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    return pixels
