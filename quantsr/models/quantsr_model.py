"""One training step of a (quantized) super-resolution network, on BasicSR's model base class."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quantsr.archs import contract
from quantsr.archs.dqa import DepthDynamic
from quantsr.basicsr_compat import MODEL_REGISTRY, BaseModel
from quantsr.config import Options
from quantsr.depth import rank_by_loss
from quantsr.errors import InputError, WorkError
from quantsr.hardware.device import bf16_is_faster
from quantsr.hardware.processes import World
from quantsr.models.damping import Damping
from quantsr.models.distillation import Distillation, output_loss
from quantsr.models.ema import Ema
from quantsr.models.losses import Losses
from quantsr.models.mismatch import Mismatch
from quantsr.models.optimizers import build_optimizers, build_schedulers, restore
from quantsr.models.removal import Removal
from quantsr.models.step_graph import StepGraph
from quantsr.trained_files.checkpoint import cpu_state

logger = logging.getLogger(__name__)

SUBNETWORKS_AT_ONCE = 8
"""In one pass without gradients; more would need more memory than training."""

Batch = Mapping[str, Tensor]
"""``lq`` (B, 3, h, w), ``gt`` (B, 3, r*h, r*w), optionally ``soft`` as ``gt``; RGB in [0, 1]."""


@MODEL_REGISTRY.register()
class QuantSRModel(BaseModel):
    """Trains a network: stage 1 at full depth, stage 2 at all depths on shared weights.

    Of BasicSR's `BaseModel` the optimizer and scheduler set-up and the reduction of losses over
    processes are used; its saving and resuming is `state` and `load_state` here, written by
    `quantsr.engine.saving`.

    Args:
        options: of the run; ``options.train`` is needed.
        net: the network, initialised and calibrated, on ``device``.
        device: where to train.
        world: this process among all.
        teacher: the float network for ``options.train.distill``, on ``device``.

    Attributes:
        net: the bare network; ``net_g`` is the same or its DDP wrapping.
        precision: ``bf16`` or ``fp32``, as ``auto`` was decided for ``device``.
        ema: its moving average, or None.
        stage: 1 or 2.
        removal: the blocks removed so far, where ``train.final_depth`` asks for it, or None.
    """

    def __init__(
        self,
        options: Options,
        *,
        net: nn.Module,
        device: torch.device,
        world: World | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        assert options.train is not None
        world = world or World()
        opt = options.basicsr_dict(is_train=True)
        opt.update(
            num_gpu=int(device.type == "cuda"), dist=world.size > 1, rank=world.rank, world_size=world.size
        )
        super().__init__(opt)
        self.device = device
        self.train_options = train = options.train
        self.precision = train.precision
        if train.precision == "auto":
            self.precision = "bf16" if bf16_is_faster(device) else "fp32"
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.net: Any = net.to(device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.ema = Ema(self.net, train.ema_decay) if train.ema_decay > 0 else None
        self.removal = self._removal(train.final_depth)
        # Blocks that are removed have no gradients.
        self.net_g: Any = self._wrap(options.find_unused_parameters or self.removal is not None)
        self.distillation = self._distillation(teacher)
        self.mismatch = Mismatch(self.net, train.mismatch_weight) if train.mismatch_weight > 0 else None
        self.damping = (
            Damping(self.net, train.damping_weight, train.total_iter) if train.damping_weight > 0 else None
        )
        self.loss = Losses(train.all_losses()).to(device)
        self.stage = 1
        self.optimizers = build_optimizers(self.net, train)
        self.schedulers = build_schedulers(self.optimizers, train.scheduler)
        self._graph = self._recorder()
        self._step = self._update if self._graph is None else self._graph
        self.batches: Sequence[Batch] = ()
        self.loss_terms: dict[str, Tensor] = {}
        self._bad_iteration = torch.zeros((), dtype=torch.int64, device=device)

    # Set-up

    def _wrap(self, find_unused: bool) -> nn.Module:
        if not self.opt["dist"]:
            return self.net
        devices = [self.device.index] if self.device.type == "cuda" else None
        # Buffers (signs, means) are made equal once, here, and do not change in training.
        return DistributedDataParallel(
            self.net, device_ids=devices, find_unused_parameters=find_unused, broadcast_buffers=False
        )

    def _removal(self, final_depth: int | None) -> Removal | None:
        if final_depth is None:
            return None
        blocks = len(self._dynamic.units())
        return Removal(iterations=self.train_options.total_iter, blocks=blocks, left=final_depth)

    def _distillation(self, teacher: nn.Module | None) -> Distillation | None:
        distill = self.train_options.distill
        if distill is None or teacher is None:
            return None
        teacher = teacher.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        arguments = distill.model_dump(exclude={"soft_weight", "feature_loss"})
        return Distillation(self.net, teacher, loss=distill.feature_loss, **arguments)

    def _recorder(self) -> StepGraph | None:
        """The CUDA graph of a step, if ``train.cuda_graph`` and the device allow it."""
        wanted = self.train_options.cuda_graph
        possible = self.device.type == "cuda" and not self.opt["dist"]
        if not wanted or not possible:
            if wanted is True:
                logger.warning(
                    "cuda_graph: true, but steps are recorded on one CUDA device only; going on without"
                )
            return None
        return StepGraph(self._update, self.optimizers, self.device)

    # Depths

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that stage 2 trains, deepest first; empty for a network with one depth."""
        depths = contract.of(self.net).depths
        return depths if len(depths) > 1 else ()

    @property
    def _dynamic(self) -> DepthDynamic:
        """The network, in calls that only one with several depths reaches."""
        dynamic = contract.of(self.net).depth_dynamic
        if dynamic is None:
            raise InputError(
                f"network_g: {type(self.net).__name__} has one depth; it has no blocks to rank or remove"
            )
        return dynamic

    @property
    def ranking_batches(self) -> int:
        """Number of batches that `start_stage2` needs: 0 unless ``train.ranking`` is ``loss``."""
        return (
            self.train_options.ranking_batches if self._ranks and self.train_options.ranking == "loss" else 0
        )

    @property
    def _ranks(self) -> bool:
        """A ranking that came with the starting checkpoint is kept where there was no stage 1."""
        return contract.of(self.net).ranking is None or self.train_options.stage1_iter > 0

    def start_stage2(self, batches: Sequence[Batch] = ()) -> tuple[int, ...]:
        """Ranks the blocks, as ``train.ranking`` says, and turns to training all depths.

        Args:
            batches: as many as `ranking_batches`.

        Raises:
            ValueError: there are fewer or more.
        """
        if len(batches) != self.ranking_batches:
            raise ValueError(f"blocks are ranked on {self.ranking_batches} batches, got {len(batches)}")
        if batches:
            ranking = self._rank_by_loss(batches)
        else:
            kept = None if self._ranks else self._dynamic.ranking
            ranking = kept or self._dynamic.rank_blocks()
        self._set_ranking(ranking)
        self.stage = 2
        self._forget_steps()
        return tuple(ranking)

    @torch.no_grad()
    def _rank_by_loss(self, batches: Sequence[Batch]) -> tuple[int, ...]:
        """Ranking by the sub-networks' loss to the ground truth, over all processes' batches."""

        def losses(candidates: Sequence[frozenset[int]]) -> list[float]:
            total = torch.zeros(len(candidates), device=self.device)
            for batch in batches:
                lq = batch["lq"].to(self.device).contiguous(memory_format=self.layout)
                gt = batch["gt"].to(self.device)
                for first in range(0, len(candidates), SUBNETWORKS_AT_ONCE):
                    some = candidates[first : first + SUBNETWORKS_AT_ONCE]
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                        outputs = self._dynamic.run_units(lq, some)
                    for i, output in enumerate(outputs):
                        total[first + i] += self.loss.total(output.float(), gt)
            if self.opt["dist"]:
                torch.distributed.all_reduce(total)
            return total.tolist()

        return rank_by_loss(len(self._dynamic.units()), losses)

    @property
    def depth(self) -> int | None:
        """The depth that stage 1 trains: all blocks but those removed; None for the full one."""
        return None if self.removal is None else self.removal.depth

    def remove_block(self, iteration: int) -> int:
        """Removes one more block, see `Removal`; returns its index."""
        assert self.removal is not None
        shortcuts = [float(unit.shortcut.detach()) for unit in self._dynamic.units()]
        block = self.removal.remove(iteration, shortcuts)
        self._apply_removal()
        return block

    def _apply_removal(self) -> None:
        """Brings the networks to `removal`: shortcuts of removed blocks are 1 and stay so."""
        assert self.removal is not None
        self._set_ranking(self.removal.ranking)
        networks = [self._dynamic]
        if self.ema is not None and (averaged := contract.of(self.ema.net).depth_dynamic) is not None:
            networks.append(averaged)
        for unit in (net.units()[index] for net in networks for index in self.removal.removed):
            with torch.no_grad():
                unit.shortcut.fill_(1.0)
            unit.requires_grad_(False)
            for parameter in unit.parameters():
                parameter.grad = None
        self._forget_steps()

    def _forget_steps(self) -> None:
        """Discard the recorded step, which is out of date."""
        if self._graph is not None:
            self._graph.forget()

    def _set_ranking(self, ranking: Sequence[int]) -> None:
        for net in (self.net, None if self.ema is None else self.ema.net):
            if net is not None and (dynamic := contract.of(net).depth_dynamic) is not None:
                dynamic.set_ranking(tuple(ranking))

    def depth_weights(self) -> tuple[float, ...]:
        """Weight of each depth's loss in stage 2; by default equal, with sum 1."""
        count = len(self.depths)
        return tuple(self.train_options.depth_weights or [1.0 / count] * count)

    # One step

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the rate for iteration ``current_iter`` (from 1): schedule and linear warm-up.

        BasicSR's own leaves a multi-step schedule at ``(warmup - 1) / warmup`` of its rate for
        good, since that schedule continues from the rate it finds; here it finds the unscaled one.
        """
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            if current_iter > 1:
                for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                    group["lr"] = rate
                scheduler.step()
            factor = min(current_iter / warmup_iter, 1.0) if warmup_iter > 0 else 1.0
            for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate * factor

    def feed_data(self, data: Batch | Sequence[Batch]) -> None:
        """Takes the batches of the next step: one, or as many as gradients are accumulated over."""
        batches = [data] if isinstance(data, Mapping) else data
        self.batches = [
            {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            for batch in batches
        ]

    def optimize_parameters(self, current_iter: int) -> None:
        """One optimizer step on the batches of `feed_data`."""
        if self.damping is not None:
            self.damping.set_iteration(current_iter)
        self.loss_terms = self._step(self.batches)
        if self.ema is not None:
            self.ema.update(self.net, current_iter)
        self._note_finite(current_iter)

    def _update(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Gradients of all batches and one optimizer step, without host synchronization."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        if self.mismatch is not None:
            self.mismatch.forget()
        for index, batch in enumerate(batches):
            accumulates = index + 1 < len(batches) and isinstance(self.net_g, DistributedDataParallel)
            with self.net_g.no_sync() if accumulates else contextlib.nullcontext():
                with self._mismatch_recorded():
                    losses = self._losses(batch)
                if self.mismatch is not None:
                    distance = self.mismatch.backward(1 / len(batches))
                    terms["l_mismatch"] = terms.get("l_mismatch", 0.0) + distance
                (sum(losses.values(), start=torch.zeros((), device=self.device)) / len(batches)).backward()
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + value.detach() / len(batches)
        if self.mismatch is not None:
            self.mismatch.add_gradients()
        if self.damping is not None:
            terms["l_damping"] = self.damping.add_gradients()
        if self.train_options.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.train_options.grad_clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return terms

    def _mismatch_recorded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.mismatch is None else self.mismatch.recording()

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss terms of one batch; their sum is minimised."""
        lq, gt = batch["lq"].contiguous(memory_format=self.layout), batch["gt"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            target = self.distillation.teacher_output(lq) if self.distillation is not None else None
            if self.stage == 1:
                own = {} if self.depth is None else {"depth": self.depth}
                outputs, weights = [self.net_g(lq, **own)], [1.0]
            else:
                outputs, weights = list(self.net_g(lq, depth=self.depths)), list(self.depth_weights())
        outputs = [output.float() for output in outputs]
        if outputs[0].shape != gt.shape:  # the loss would repeat what is missing
            raise InputError(
                f"network_g: makes {tuple(outputs[0].shape)} of crops whose ground truth is {tuple(gt.shape)}; it must "
                "have 3 output channels and the options' scale"
            )
        terms = {f"l_{name}": value * weights[0] for name, value in self.loss(outputs[0], gt).items()}
        for depth, output, weight in list(zip(self.depths, outputs, weights, strict=False))[1:]:
            for name, value in self.loss(output, gt).items():
                terms[f"l_{name}_depth{depth}"] = value * weight
        if self.distillation is not None and target is not None:
            terms.update(self.distillation.losses(outputs, weights, target))
        distill = self.train_options.distill
        if distill is not None and distill.soft_weight > 0:
            terms["l_soft"] = distill.soft_weight * output_loss(outputs, weights, batch["soft"])
        return terms

    def _note_finite(self, iteration: int) -> None:
        """Record the first iteration with a non-finite loss, without host synchronization."""
        total = torch.stack(list(self.loss_terms.values())).sum()
        first_bad = ~torch.isfinite(total) & (self._bad_iteration == 0)
        self._bad_iteration = torch.where(first_bad, iteration, self._bad_iteration)

    def check_finite(self, *, weights: bool = False) -> None:
        """Waits for the device.

        Args:
            weights: look at the parameters too: a gradient may overflow where the loss does not,
                and in another process.

        Raises:
            WorkError: some loss so far was NaN or infinite; names the first such iteration. Or some
                parameter is.
        """
        iteration = int(self._bad_iteration.item())
        if iteration:
            bad = f"iteration {iteration}: the loss is"
        elif weights and not all(bool(p.detach().isfinite().all()) for p in self.net.parameters()):
            bad = "the network's parameters are"
        else:
            return
        raise WorkError(
            f"{bad} not finite; lower train.optim_g.lr or set train.grad_clip_norm, "
            "and go on from the last checkpoint with --auto-resume"
        )

    def get_current_log(self) -> dict[str, float]:
        """Loss terms of the last step and their sum ``loss``, averaged over all processes."""
        log = dict(self.reduce_loss_dict(dict(self.loss_terms)))
        return {"loss": sum(log.values()), **log}

    # State

    @property
    def evaluated_net(self) -> nn.Module:
        """The network that is evaluated: the moving average where there is one."""
        return self.net if self.ema is None else self.ema.net

    def state(self) -> dict[str, Any]:
        """The state from which `load_state` resumes exactly."""
        ranking = contract.of(self.net).ranking
        return {
            "params": cpu_state(self.net),
            "params_ema": None if self.ema is None else cpu_state(self.ema.net),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [
                {"last_epoch": s.last_epoch, "_step_count": s._step_count, "_last_lr": list(s.get_last_lr())}
                for s in self.schedulers
            ],
            "stage": self.stage,
            "ranking": None if ranking is None else [int(index) for index in ranking],
            **({} if self.removal is None else {"removal": self.removal.state()}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`; rates and other settings of the optimizers follow the options.

        Raises:
            RuntimeError, KeyError, ValueError: the state belongs to another network.
        """
        self.net.load_state_dict(state["params"])
        if self.ema is not None:
            self.ema.net.load_state_dict(state["params_ema"] or state["params"])
        if state["ranking"] is not None:
            self._set_ranking(state["ranking"])
        states = zip(state["optimizers"], state["schedulers"], strict=True)
        for optimizer, scheduler, saved in zip(self.optimizers, self.schedulers, states, strict=True):
            restore(optimizer, scheduler, *saved)
        if self.removal is not None:
            self.removal.load_state(state["removal"])
            if self.removal.removed:
                self._apply_removal()
        self.stage = int(state["stage"])
        self._forget_steps()


# The name in BasicSR's option files. All of BasicSR may have been imported before and hold it;
# see `registries.models`.
if "SRModel" not in MODEL_REGISTRY:
    MODEL_REGISTRY._do_register("SRModel", QuantSRModel)
