"""What the networks of a comparison cost: bytes packed, operations, and milliseconds measured on
this machine. The file ``costs.json`` keeps them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from quantsr.analysis.compare_tables import COST_SIZE, COSTS, Cost, read_costs
from quantsr.analysis.cost import cost_of_packed
from quantsr.analysis.module_cost import cost_of_network
from quantsr.analysis.runs import Ledger
from quantsr.config.comparison import Comparison, Run
from quantsr.deploy.bench import measure
from quantsr.deploy.convert import convert
from quantsr.deploy.export import calibration_pictures
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError, WorkError
from quantsr.files import write_text
from quantsr.loading import trained_network

logger = logging.getLogger(__name__)

_RUNS = 7  # timed upscalings


def update(comparison: Comparison, ledger: Ledger) -> None:
    """Measures the variants whose costs are not known, in turn, and writes ``costs.json``.

    Called inside `Ledger.exclusive`. A network that cannot be packed or measured gets a note.

    Raises:
        WorkError: the file cannot be written.
    """
    known = read_costs(ledger.folder)
    first: dict[str, Run] = {}
    for run in comparison.runs:
        if ledger.state(run).evaluated:
            first.setdefault(run.variant, run)
    costs = {}
    for variant, run in first.items():
        identity = ledger.identity(run)
        found = known.get(variant)
        if found is None or found.identity != identity:
            logger.info("costs of %s", run.name)
            found = _cost(run, identity)
        costs[variant] = found
    if costs != known:
        rows = {variant: dataclasses.asdict(cost) for variant, cost in costs.items()}
        write_text(ledger.folder / COSTS, json.dumps(rows, indent=1) + "\n")


def _cost(run: Run, identity: str) -> Cost:
    try:
        model = _packed(run)
        gbitops = _gbitops(cost_of_packed(model, [COST_SIZE]))
        timed = measure(model, "auto", COST_SIZE, runs=_RUNS)
    except (InputError, WorkError) as error:
        network = run.evaluation.network_g
        counted = cost_of_network(network.type, network.kwargs, [COST_SIZE])
        return Cost(identity, counted["storage"]["packed_bytes"], _gbitops(counted), {}, note=str(error))
    return Cost(
        identity,
        len(packing.to_bytes(model)),
        gbitops,
        {row["depth"]: row["median_ms"] for row in timed["depths"]},
        timed["engine"],
        timed["machine"],
    )


def _packed(run: Run) -> PackedModel:
    network, _ = trained_network(run.evaluation)
    return convert(network.eval(), calib=calibration_pictures(None, run.evaluation.scale))


def _gbitops(cost: Mapping[str, Any]) -> dict[int, float]:
    return {row["depth"] or 0: round(row["sizes"][0]["bitops"] / 1e9, 3) for row in cost["depths"]}
