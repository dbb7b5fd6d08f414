"""The evaluation of `quantsr test` and of every run of a comparison: bicubic, teacher and network
on all test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import nn
from tqdm import tqdm

from quantsr.config import Options
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.engine import build
from quantsr.engine.evaluate import Provenance, Saving, Upscale, bicubic, build_sets, evaluate
from quantsr.engine.results import Record
from quantsr.engine.validation import metric_arguments
from quantsr.errors import InputError
from quantsr.hardware.device import resolve_device, seed_everything
from quantsr.loading import trained_network
from quantsr.trained_files.names import resolve


def evaluate_options(options: Options, progress: Callable[[str], None] | None = None) -> list[Record]:
    """Evaluates bicubic, the float network of ``network_teacher`` where given, and ``network_g`` on
    all test sets.

    ``progress`` is called with a line after each picture; its exceptions end the evaluation.

    Raises:
        InputError: no checkpoint, sets or metrics, or a checkpoint that does not fit.
        WorkError: a picture cannot be written.
    """
    val = options.val
    metrics = metric_arguments(options)
    if val is None or not metrics:
        raise InputError("val.metrics: missing; name what to measure, e.g. psnr: {type: calculate_psnr}")
    device = resolve_device(options.num_gpu)
    seed_everything(options.manual_seed)
    net, iteration = trained_network(options)
    sets = build_sets(options.evaluation_sets(), options.scale, metrics)
    if not sets:
        raise InputError("datasets: no test or val set; add one")
    depths = build.depths_to_evaluate(net, options)
    build.log_manifest(net)

    networks: list[tuple[nn.Module | Upscale, str, Sequence[int] | None, int | None]] = []
    teacher = build.build_teacher(options)
    if teacher is not None:
        networks.append((teacher.to(device), build.title(teacher), None, None))
    if val.engine == "torch":
        networks.append((net.to(device), build.title(net), depths, iteration))
    else:
        for depth, upscaler in _on_engine(options, depths):
            networks.append((upscaler, build.title(net), [depth], iteration))
    saving = None
    if val.save_img:
        saving = Saving(
            Path(options.results_folder) / "visualization", val.suffix or options.name, val.num_save_img
        )
    pictures = sum(len(dataset.pictures) for dataset in sets)
    total = pictures * (len(networks) + val.baseline)
    records: list[Record] = []
    with tqdm(total=total, unit="picture", disable=None if val.pbar else True) as bar:

        def advance(line: str) -> None:
            bar.set_description(line, refresh=False)
            bar.update()
            if progress is not None:
                progress(line)

        if val.baseline:
            provenance = Provenance(options.config_hash())
            records += bicubic(sets, metrics=metrics, provenance=provenance, progress=advance)
        for network, name, rows, step in networks:
            records += evaluate(
                network,
                sets,
                metrics=metrics,
                name=name,
                depths=rows,
                ensemble=val.selfensemble_testing,
                engine=network.engine if isinstance(network, Upscaler) else "torch",
                saving=None if network is teacher else saving,
                provenance=Provenance(options.config_hash(), step),
                progress=advance,
            )
    return records


def _on_engine(options: Options, depths: Sequence[int] | None) -> Iterator[tuple[int, Upscaler]]:
    """The packed file of ``path.pretrain_network_g`` on ``val.engine``, at each depth.

    Raises:
        InputError: the checkpoint is not a packed file, or has no such depth.
    """
    assert options.val is not None
    assert options.path.pretrain_network_g is not None
    file = resolve(options.path.pretrain_network_g)
    for depth in depths or ():
        yield depth, Upscaler(file, engine=options.val.engine, depth=depth)
