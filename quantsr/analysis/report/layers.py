"""Steps and histograms of the weight codes of every quantized layer of a run's network."""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path

import numpy as np

from quantsr.analysis.report.runs import ReportRun
from quantsr.config.schema import Options
from quantsr.deploy.convert import convert
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedLayer, PackedModel
from quantsr.errors import InputError
from quantsr.loading import trained_network
from quantsr.ranges import IntRange
from quantsr.trained_files.names import PACKED, resolve

logger = logging.getLogger(__name__)

MOST_BITS = 4
"""Histograms are drawn of codes with at most so many bits, a bar for each code."""
_WIDTH, _HEIGHT = 96, 24


def networks(run: ReportRun) -> list[tuple[str, PackedModel]]:
    """The networks of a run with their labels: one, or of a comparison one for each variant. Those
    without a file, and those that have no integer codes, are left out with a line in the log."""
    if run.comparison is not None:
        first = {r.variant: r.evaluation for r in reversed(run.comparison.runs)}
        named = [(f"{run.label}/{variant}", first[variant]) for variant in run.comparison.options.variants]
    else:
        named = [(run.label, options) for options in (_options(run),) if options is not None]
    found = []
    for label, options in named:
        try:
            model = _packed(options)
        except InputError as error:
            logger.info("%s: shown without its layers (%s)", label, error)
            continue
        if any(layer.integer for layer in model.layers.values()):
            found.append((label, model))
    return found


def _options(run: ReportRun) -> Options | None:
    """The options that load a run's network."""
    if not run.sources:
        return None
    options = run.sources[0].options
    if run.kind != "training":
        return options if options.path.pretrain_network_g is not None else None
    files = [run.folder / "models" / f"net_g_{name}.pth" for name in ("best", "latest")]
    trained = [str(file) for file in files if file.is_file()]
    if not trained:
        return None
    path = options.path.model_copy(update={"pretrain_network_g": trained[0]})
    return options.model_copy(update={"path": path})


def _packed(options: Options) -> PackedModel:
    file = options.path.pretrain_network_g
    if file is not None and Path(resolve(file)).suffix == PACKED:
        return packing.load(resolve(file))
    network, _ = trained_network(options)
    return convert(network.eval(), head_tail_bits=32)


def cells(model: PackedModel) -> list[list[str]]:
    """The table of a network's layers, the header first; the last column is HTML, a histogram."""
    rows = [["layer", "weight bits", "input bits", "weight step", "input step", "zeros", "codes"]]
    for name, layer in model.layers.items():
        if layer.bits_w > 8 or layer.weight_step is None:
            continue
        share = float(np.mean(layer.weight == 0))
        rows.append(
            [
                name,
                str(layer.bits_w),
                str(layer.bits_a),
                _step(layer.weight_step),
                "-" if layer.act_step is None else _step(layer.act_step),
                f"{100 * share:.1f} %",
                histogram(layer) if layer.bits_w <= MOST_BITS else "",
            ]
        )
    return rows


def _step(steps: np.ndarray) -> str:
    """A step, or the smallest and largest of several."""
    low, high = float(steps.min()), float(steps.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def histogram(layer: PackedLayer) -> str:
    """A bar for each code that the layer's weight may have, as SVG."""
    low, high = IntRange.of(layer.bits_w, signed=True).bounds
    counts = np.array([np.count_nonzero(layer.weight == code) for code in range(low, high + 1)])
    width = _WIDTH / len(counts)
    heights = _HEIGHT * counts / max(1, counts.max())
    bars = "".join(
        f'<rect x="{index * width:.1f}" y="{_HEIGHT - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}"/>'
        for index, height in enumerate(heights)
    )
    text = f"{counts.sum()} codes from {low} to {high}: {' '.join(map(str, counts))}"
    return (
        f'<svg class="bars" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(text)}">'
        f"<title>{escape(text)}</title>{bars}</svg>"
    )
