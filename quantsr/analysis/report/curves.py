"""Training curves from the TensorBoard logs of runs, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from quantsr.errors import InputError

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 34
MOST_POINTS = 400
"""Limit of the points of a line; of more, every k-th and the last are drawn."""

STYLES = 8
"""Number of line styles (colour and dash pattern) in the style sheet, ``line0`` to ``line7``."""


@dataclass(frozen=True)
class Line:
    """One curve: ``points`` are (iteration, value), finite, in the order of the iterations."""

    label: str
    points: tuple[tuple[int, float], ...]


def read_scalars(folder: Path) -> dict[str, tuple[tuple[int, float], ...]]:
    """The scalars of a TensorBoard log by tag, finite values only; empty where there is no log.

    Of points that an interrupted run wrote twice, the last is used.

    Raises:
        InputError: a file of the log is a pipe, a device or a folder.
    """
    if not folder.is_dir():
        return {}
    for path in folder.iterdir():
        if "tfevents" in path.name and not path.is_file():
            raise InputError(f"{path}: is no regular file; remove it from the log")
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    log.Reload()
    found = {}
    for tag in log.Tags()["scalars"]:
        values = {event.step: event.value for event in log.Scalars(tag) if math.isfinite(event.value)}
        if values:
            found[tag] = tuple(sorted(values.items()))
    return found


def charts(runs: Sequence[tuple[str, dict[str, tuple[tuple[int, float], ...]]]]) -> list[str]:
    """The HTML of every chart: the loss, and each metric of each set with a line per run and depth.

    Args:
        runs: label and scalars of each run.
    """
    groups: dict[str, list[Line]] = {}
    for label, scalars in runs:
        for tag, points in scalars.items():
            parts = tag.split("/")
            if tag == "train/loss":
                groups.setdefault("training loss", []).append(Line(label, points))
            elif parts[0] == "val" and len(parts) >= 3:
                set_name, metric, *depth = parts[1:]
                name = f"{label}, {depth[0].replace('depth', 'depth ')}" if depth else label
                groups.setdefault(f"{metric.upper()} on {set_name}", []).append(Line(name, points))
    order = sorted(groups, key=lambda title: title != "training loss")
    return [chart(title, groups[title], log_scale=title == "training loss") for title in order]


def chart(title: str, lines: Sequence[Line], *, log_scale: bool = False) -> str:
    """A line chart with axes and a legend, as HTML. ``log_scale`` makes the vertical axis
    logarithmic where all values are positive."""
    last = max(line.points[-1][0] for line in lines)
    values = [value for line in lines for _, value in line.points]
    log_scale = log_scale and min(values) > 0
    marks = log_ticks(min(values), max(values)) if log_scale else ticks(min(values), max(values))
    low, high = min(*values, *marks), max(*values, *marks)
    high = high if high > low else low + 1.0

    def x(iteration: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * iteration / max(last, 1)

    def y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log_scale else (value - low) / (high - low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    parts = value_axis(marks, y, _LEFT, WIDTH - _RIGHT)
    for iteration in ticks(0, last, whole=True):
        if iteration <= last:
            parts.append(f'<text class="mid" x="{x(iteration):.1f}" y="{HEIGHT - 14}">{iteration:g}</text>')
    parts.append(
        f'<text class="mid" x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 1}">iteration</text>'
    )
    for index, line in enumerate(lines):
        place = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in thinned(line.points))
        parts.append(f'<polyline class="line{index % STYLES}" points="{place}"/>')
        if len(line.points) == 1:
            (i, v), *_ = line.points
            parts.append(f'<circle class="line{index % STYLES}" cx="{x(i):.1f}" cy="{y(v):.1f}" r="2.5"/>')
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="line{index % STYLES}" x1="0" x2="24" y1="4" '
        f'y2="4"/></svg>{escape(line.label)}: {line.points[-1][1]:.4g}</li>'
        for index, line in enumerate(lines)
    )
    return figure(title, parts, legend, "the last values are in the list below")


def value_axis(marks: Sequence[float], y: Callable[[float], float], left: int, right: int) -> list[str]:
    """The elements of a vertical axis: for each mark a line from ``left`` to ``right``, and its
    number. ``y`` is the height of a value."""
    parts = []
    for value in marks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="end" x="{left - 6}" y="{y(value) + 4:.1f}">{value:g}</text>')
    return parts


def figure(title: str, parts: Sequence[str], legend: str, hint: str) -> str:
    """A chart of SVG elements with its title and the items of its legend, as HTML; ``hint`` is for
    those who do not see it."""
    name = escape(title)
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}; {hint}">'
        f"{''.join(parts)}</svg><ul>{legend}</ul></figure>"
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about `MOST_POINTS` of the points, always with the last."""
    stride = -(-len(points) // MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Four to eight round numbers that span ``low`` to ``high``."""
    span = high - low if high > low else abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)  # at least two ticks
    return [round((first + k) * step, 12) for k in range(last - first + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """At least two of 1, 2 and 5 times powers of ten, around ``low`` to ``high``."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    below = max((mark for mark in marks if mark <= low), default=low)
    above = min((mark for mark in marks if mark >= high and mark > below), default=high)
    return [float(f"{mark:.6g}") for mark in marks if below <= mark <= above]
