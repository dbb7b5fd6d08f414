"""Which TIFFs (TIFF 6.0 and its supplements) Pillow and OpenCV decode correctly, by their tags."""

from __future__ import annotations

from typing import Any

from quantsr.pictures.formats import KindError

_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _SAMPLES_PER_PIXEL = 258, 259, 262, 277
_PLANAR_CONFIGURATION, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 284, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_COLOUR_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_SAMPLE_KINDS = {2: "signed integers", 3: "floating-point values", 5: "complex values", 6: "complex values"}


def is_deep(tags: Any) -> bool:
    """Whether the samples have 16 bits. Raises KindError for kinds that would be decoded wrongly.

    Args:
        tags: `tag_v2` of Pillow's picture.
    """
    bits = set(_values(tags, _BITS_PER_SAMPLE, 1))
    formats = set(_values(tags, _SAMPLE_FORMAT, 1))
    wrong = next((_SAMPLE_KINDS[kind] for kind in sorted(formats) if kind in _SAMPLE_KINDS), None)
    if wrong is not None:
        raise KindError(f"holds {wrong}; save it with 8 or 16 bits, unsigned")
    samples = _value(tags, _SAMPLES_PER_PIXEL, 1)
    photometric = _value(tags, _PHOTOMETRIC, _BLACK_IS_ZERO)
    planes = samples > 1 and _value(tags, _PLANAR_CONFIGURATION, 1) != 1
    if max(bits) <= 8:
        if planes and photometric != _RGB:  # Pillow reads the first plane for all
            raise KindError("has separate planes that are not RGB; save it with interleaved channels")
        return False
    if bits != {16}:
        raise KindError(f"has {max(bits)} bits per channel; save it with 8 or 16 bits, unsigned")
    if (photometric, samples) not in {(_WHITE_IS_ZERO, 1), (_BLACK_IS_ZERO, 1), (_RGB, 3), (_RGB, 4)}:
        raise KindError("has 16 bits and is neither gray nor RGB nor RGBA; save it as one of these")
    if planes:
        raise KindError("has 16 bits in separate planes; save it with interleaved channels")
    if _ASSOCIATED_ALPHA in _values(tags, _EXTRA_SAMPLES, 0):
        raise KindError(
            "its 16-bit colours are multiplied by alpha; save it with unassociated alpha, or as PNG"
        )
    return True


def has_alpha(tags: Any) -> bool:
    """Whether the first channel after the colours is declared as alpha, or is the fourth of an RGB
    file without a declaration: OpenCV writes RGBA so, and libtiff and Pillow read it as alpha."""
    if _EXTRA_SAMPLES not in tags:
        return _value(tags, _PHOTOMETRIC, _BLACK_IS_ZERO) == _RGB and _value(tags, _SAMPLES_PER_PIXEL, 1) == 4
    return _value(tags, _EXTRA_SAMPLES, 0) in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA)


def has_other_channels(tags: Any) -> bool:
    """Whether there are channels beside colours and alpha, which are left out."""
    colours = _COLOUR_CHANNELS.get(_value(tags, _PHOTOMETRIC, _BLACK_IS_ZERO), 0)
    return colours > 0 and _value(tags, _SAMPLES_PER_PIXEL, 1) > colours + has_alpha(tags)


def is_white_zero(tags: Any) -> bool:
    """Whether 0 stands for white, which OpenCV ignores."""
    return _value(tags, _PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO


def _values(tags: Any, tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return tuple(int(v) for v in value) or (default,) if isinstance(value, tuple) else (int(value),)


def _value(tags: Any, tag: int, default: int) -> int:
    return _values(tags, tag, default)[0]
