"""The sections of an option file for training. Names and meanings are BasicSR's wherever
it has the key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from quantsr.config.base import Int, Registered, Section


class OptimizerOptions(Registered):
    """The optimizer: ``type`` and, beside it, arguments of its constructor."""

    type: str = Field(
        default="Adam",
        description="`Adam`, `AdamW` or another optimizer of torch.optim, or `Muon` for the weights of all convolutions and linear layers but the first and the last, with Adam, at the same rate, for the rest.",
    )
    lr: float = Field(gt=0, description="Learning rate at the start.")
    betas: list[float] = Field(
        default_factory=lambda: [0.9, 0.99], min_length=2, max_length=2, description="Adam's two decay rates."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay.")

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: list[float]) -> list[float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must lie in [0, 1); for example [0.9, 0.99]")
        return value


MULTI_STEP, COSINE = ("MultiStepLR", "MultiStepRestartLR"), "CosineAnnealingRestartLR"
"""BasicSR's schedulers."""


class SchedulerOptions(Registered):
    """The learning-rate schedule: ``type`` and, beside it, arguments of its constructor; counts
    optimizer steps."""

    type: str = Field(
        description="`MultiStepLR` (the same as `MultiStepRestartLR`), `CosineAnnealingRestartLR`, BasicSR's, or a scheduler of torch.optim.lr_scheduler."
    )
    milestones: list[Int] | None = Field(
        default=None, description="MultiStep: iterations after which the rate is multiplied by `gamma`."
    )
    gamma: float | None = Field(
        default=None, gt=0, description="MultiStep: that factor; BasicSR's default is 0.1."
    )
    restarts: list[Int] | None = Field(
        default=None,
        min_length=1,
        description="MultiStep: iterations at which the rate starts again; default `[0]`.",
    )
    periods: list[Int] | None = Field(
        default=None,
        min_length=1,
        description="Cosine: length of each cycle; default one cycle of `total_iter`.",
    )
    restart_weights: list[float] | None = Field(
        default=None, description="Factor of the starting rate at each restart; default 1 each."
    )
    eta_min: float | None = Field(default=None, ge=0, description="Cosine: lowest learning rate; default 0.")

    @model_validator(mode="after")
    def _complete(self) -> SchedulerOptions:
        if self.type in MULTI_STEP and self.milestones is None:
            raise ValueError(f"milestones missing; {self.type} needs a list of iterations")
        if self.restart_weights is not None and len(self.restart_weights) != self._cycles:
            raise ValueError(f"restart_weights must have {self._cycles} entries, one per cycle")
        return self

    @property
    def _cycles(self) -> int:
        return len(self.periods or self.restarts or [0])

    def arguments(self) -> dict[str, Any]:
        """See `Registered.arguments`; adds a weight for each restart, since BasicSR's default is a
        single one."""
        given = self.given()
        restarts = self.type in (*MULTI_STEP, COSINE)
        return {"restart_weights": [1.0] * self._cycles, **given} if restarts else given


class LossOptions(Registered):
    """A loss between output and ground truth: ``type`` and, beside it, arguments of its
    constructor."""

    type: str = Field(
        default="L1Loss",
        description="Name in BasicSR's loss registry: `L1Loss`, `MSELoss`, `CharbonnierLoss`, or another registered one.",
    )
    loss_weight: float = Field(
        default=1.0,
        ge=0,
        description="Factor; 0 where only the teacher's output or `dataroot_soft` is learned from.",
    )
    reduction: Literal["mean", "sum"] = Field(default="mean", description="`mean` or `sum` over pixels.")
    eps: float | None = Field(default=None, gt=0, description="`CharbonnierLoss`: its epsilon.")


class DistillOptions(Section):
    """Learning from the float teacher `network_teacher` (QuantSR's losses), or from pictures that
    another network made."""

    output_weight: float = Field(
        default=0.0, ge=0, description="Weight of the L1 distance between student's and teacher's output."
    )
    feature_weight: float = Field(
        default=0.0, ge=0, description="Weight of the feature loss; QuantSR uses 1e-4."
    )
    feature_loss: Literal["QuantSR", "PAMS", "SFD"] = Field(
        default="QuantSR",
        description="Which: `QuantSR`, distance of normalized squares; `PAMS`, its structured knowledge transfer, published with the weight 1e3 "
        "(with `points: 1` at the last block); `SFD`, QuantSR+'s distance of the features of every block that is neither removed nor "
        "right behind a removed one, published with 1e-4; its teacher has the network's own shape.",
    )
    points: Int = Field(
        default=4,
        gt=0,
        description="How many blocks, evenly spread, are compared by the feature loss; no effect on `SFD`.",
    )
    soft_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the L1 distance between output and `datasets.train.dataroot_soft`; needs no `network_teacher`.",
    )


class TrainOptions(Section):
    """Training: stage 1 at full depth, then the ranking of blocks, then stage 2 at all depths
    together."""

    total_iter: Int = Field(
        ge=0,
        description="Optimizer steps of both stages together. 0 calibrates and saves: post-training quantization.",
    )
    stage1_fraction: float = Field(
        default=0.6, ge=0, le=1, description="Share of `total_iter` that stage 1 takes."
    )
    warmup_iter: Int = Field(default=-1, ge=-1, description="Steps of linear warm-up; -1 none.")
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay per step of the averaged copy of the weights; it starts at 2/11 and rises to this value. 0 keeps no copy.",
    )
    optim_g: OptimizerOptions = Field(description="The optimizer.")
    step_lr_mult: float = Field(
        default=1.0, gt=0, description="Factor of the learning rate for quantizer steps and thresholds (tau)."
    )
    step_lr: Literal["absolute", "relative"] = Field(
        default="absolute",
        description="Meaning of that rate: `absolute`, as in the paper, or `relative` to the calibrated step of each quantizer, so that all of them "
        "change by the same ratio in an iteration. Adam's updates are as large as the rate: with an absolute one of 2e-4 a weight step of 0.02 "
        "changes by 1 %, and an activation step of 10 needs 500 iterations for 1 % (and more, since its gradient is below Adam's epsilon).",
    )
    scheduler: SchedulerOptions = Field(description="The learning-rate schedule.")
    pixel_opt: LossOptions = Field(
        default_factory=LossOptions,
        description="The loss between output and ground truth; the same as `losses` with one entry named `pix`.",
    )
    losses: dict[str, LossOptions] = Field(
        default_factory=dict,
        description="Several losses, by name, instead of `pixel_opt`; their sum is minimised, and the log has each as `l_NAME`.",
    )
    mismatch_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of ODM's loss on the distance of features from the ranges that quantize them (1e-5 in ODM); its gradient is scaled by "
        "`(cos + 1) / 2` of the angle to that of the other losses. Of `l_mismatch` in the log only that part is minimised.",
    )
    damping_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the squared distance of weights from the values that they are quantized to, which keeps them from oscillating between "
        "two codes (Nagel et al., ICML 2022); it rises from 0 by half a cosine over `total_iter`.",
    )
    distill: DistillOptions | None = Field(default=None, description="Distillation.")
    ranking: Literal["shortcut", "loss"] = Field(
        default="shortcut",
        description="Which blocks the lower depths keep: those with the smallest learned `shortcut`, as in the paper, or, one after the other, "
        "all but the one whose absence raises the `loss` least.",
    )
    ranking_batches: Int = Field(
        default=4, gt=0, description="Training batches on which `ranking: loss` measures."
    )
    depth_weights: list[float] | None = Field(
        default=None,
        description="Stage 2: weight of each depth's loss, deepest first; default equal, together 1.",
    )
    final_depth: Int | None = Field(
        default=None,
        gt=0,
        description="QuantSR+'s QSA: in stage 1 the block with the largest `shortcut` is removed after 20 % of the iterations, then one more at each "
        "validation at which the first metric is back where it was or `2 total_iter / blocks` iterations have passed (less where the last "
        "would go after 80 %), until so many blocks are left; half in QuantSR+. Needs `stage1_fraction: 1`.",
    )
    grad_clip_norm: float | None = Field(
        default=None, gt=0, description="Largest norm of the gradient; none by default."
    )
    accumulate: Int = Field(
        default=1, gt=0, description="Batches whose gradients are added up for one optimizer step."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="Arithmetic of float layers; quantizers always use FP32. `auto`: bf16 where the device trains faster in it (CUDA devices since Ampere, AMX, AMD's AVX-512 with bf16), else FP32.",
    )
    channels_last: bool = Field(default=True, description="Channels-last memory layout.")
    compile: bool | Literal["auto"] = Field(
        default="auto", description="Whether to use torch.compile; `auto` decides by the device."
    )
    cuda_graph: bool | Literal["auto"] = Field(
        default="auto",
        description="Whether a step is recorded as a CUDA graph and replayed, which saves the launches of some thousand small kernels; `auto`: on one "
        "CUDA device, where recording works.",
    )
    exact_fp32: bool = Field(
        default=False,
        description="Forbid TF32 and other reduced precision, and choose deterministic kernels, on CUDA.",
    )
    initial_steps: Literal["mean", "mse"] = Field(
        default="mean",
        description="Initial quantizer steps: `mean`, `2 mean|x| / sqrt(Qp)` as in the paper, or `mse`, the multiple of that with the least squared error.",
    )
    calibration_batches: Int = Field(
        default=1, gt=0, description="Training batches from which steps and signs are initialised."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_cycle(cls, value: Any) -> Any:
        scheduler = value.get("scheduler") if isinstance(value, dict) else None
        if not isinstance(scheduler, dict) or scheduler.get("type") != COSINE:
            return value
        if scheduler.get("periods") is not None or "total_iter" not in value:
            return value
        return {**value, "scheduler": {**scheduler, "periods": [value["total_iter"] or 1]}}

    def all_losses(self) -> dict[str, LossOptions]:
        """The losses by name: `losses`, or `pixel_opt` under the name ``pix``."""
        return self.losses or {"pix": self.pixel_opt}

    @property
    def stage1_iter(self) -> int:
        """Optimizer steps of stage 1 (full depth)."""
        return round(self.total_iter * self.stage1_fraction)

    @property
    def stage2_iter(self) -> int:
        """Optimizer steps of stage 2 (all depths)."""
        return self.total_iter - self.stage1_iter
