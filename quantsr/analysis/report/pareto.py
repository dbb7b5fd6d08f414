"""Quality against cost: a chart for each cost, with the points that no other point surpasses
joined to a front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from quantsr.analysis.compare_tables import Cost, Spread, by_row
from quantsr.analysis.report.curves import HEIGHT, STYLES, WIDTH, figure, log_ticks, ticks, value_axis
from quantsr.engine.results import Record

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 12, 34


@dataclass(frozen=True)
class Point:
    """One network at one depth.

    Attributes:
        label: of the point.
        group: index of its variant, which selects the colour.
        cost: above 0, less is better.
        quality: of a metric of which more is better.
    """

    label: str
    group: int
    cost: float
    quality: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points, by cost, than which no other one is as cheap and better, or cheaper and as
    good."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.quality)):
        if not found or point.quality > found[-1].quality:
            found.append(point)
    return found


def charts(records: Sequence[Record], set_name: str, metric: str, costs: Mapping[str, Cost]) -> list[str]:
    """The charts of one set and metric, as HTML: against kB, GBitOP, and ms where it was
    measured."""
    rows = by_row(records, set_name, metric)
    variants = list(dict.fromkeys(variant for variant, _, _ in rows))
    found = []
    for unit, title in (("kB", "packed size"), ("GBitOP", "operations"), ("ms", "time")):
        points = []
        for (variant, _, depth), values in rows.items():
            cost = costs.get(variant)
            amount = None if cost is None else _amount(cost, depth, unit)
            mean = Spread.of(list(values.values())).mean
            if amount and math.isfinite(mean):
                label = variant if depth is None else f"{variant}, depth {depth}"
                points.append(Point(label, variants.index(variant), amount, mean))
        if len(points) > 1:
            found.append(chart(f"{metric.upper()} on {set_name} against {title}", unit, points))
    return found


def _amount(cost: Cost, depth: int | None, unit: str) -> float | None:
    if unit == "kB":
        return cost.packed_bytes / 1e3
    return cost.at(depth, cost.gbitops if unit == "GBitOP" else cost.ms)


def chart(title: str, unit: str, points: Sequence[Point]) -> str:
    """One chart with a logarithmic axis of costs, and its legend, as HTML."""
    across = log_ticks(min(p.cost for p in points), max(p.cost for p in points))
    up = ticks(min(p.quality for p in points), max(p.quality for p in points))
    low, high = up[0], up[-1]

    def x(cost: float) -> float:
        share = math.log(cost / across[0]) / math.log(across[-1] / across[0])
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * share

    def y(quality: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (quality - low) / (high - low)

    parts = value_axis(up, y, _LEFT, WIDTH - _RIGHT)
    for value in across:
        parts.append(f'<text class="mid" x="{x(value):.1f}" y="{HEIGHT - 14}">{value:g}</text>')
    parts.append(f'<text class="mid" x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 1}">{unit}</text>')
    best = front(points)
    place = " ".join(f"{x(p.cost):.1f},{y(p.quality):.1f}" for p in best)
    parts.append(f'<polyline class="front" points="{place}"/>')
    legend = []
    for point in points:
        text = f"{point.label}: {point.quality:.3f} at {point.cost:.4g} {unit}"
        style = f"line{point.group % STYLES}"
        parts.append(
            f'<circle class="{style} mark" cx="{x(point.cost):.1f}" cy="{y(point.quality):.1f}" r="4">'
            f"<title>{escape(text)}</title></circle>"
        )
        on_front = " (on the front)" if point in best else ""
        legend.append(
            f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><circle class="{style} mark" cx="12" cy="4" r="3"/>'
            f"</svg>{escape(text)}{on_front}</li>"
        )
    return figure(title, parts, "".join(legend), "the values are in the list below")
