"""The sections of an option file. Names and meanings are BasicSR's wherever BasicSR has the key.

The descriptions are the documentation: ``docs/options.md`` is generated from them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from quantsr.config.base import Int, Section

EVALUATION_PHASES = ("val", "test")


class NetworkOptions(Section):
    """A network: ``type`` and, beside it, the keyword arguments of its constructor."""

    type: str = Field(
        min_length=1,
        description="Name in BasicSR's architecture registry, e.g. `QuantSR_C`, `EDSR`, `MSRResNet`.",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Every other key of the section; passed to the constructor and checked against its signature.",
    )

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, dict) and not isinstance(value.get("kwargs"), dict):
            kwargs = {k: v for k, v in value.items() if k != "type"}
            return {**({"type": value["type"]} if "type" in value else {}), "kwargs": kwargs}
        return value

    def flat(self) -> dict[str, Any]:
        """The section as BasicSR writes it: ``{"type": ..., **kwargs}``."""
        return {"type": self.type, **self.kwargs}


class IOBackendOptions(Section):
    """How pictures are read."""

    type: Literal["disk", "lmdb"] = Field(
        "disk", description="`disk` (folders of pictures) or `lmdb` (BasicSR's LMDB folders)."
    )


class DatasetOptions(Section):
    """A data set: the key `train`, `val`, `val_2`, ..., `test`, `test_1`, ... says what it is for."""

    name: str = Field(min_length=1, description="Name in logs, tables and result folders.")
    type: str = Field(
        description="`PairedImageDataset` (BasicSR's: LR and GT folders), `CroppedImageDataset` (training crops from GT pictures of any "
        "size, kept decoded in memory) or `SkimageDataset` (astronaut, coffee and chelsea of scikit-image; needs no folder)."
    )
    phase: Literal["train", "val", "test"] = Field(description="Derived from the key; need not be written.")
    dataroot_gt: str | list[str] | None = Field(
        None,
        description="Folder of ground-truth pictures; `CroppedImageDataset` takes a list of folders too. `~` is the home folder.",
    )
    dataroot_lq: str | list[str] | None = Field(
        None,
        description="Folder(s) of low-resolution pictures. Without it `CroppedImageDataset` makes them by MATLAB's bicubic.",
    )
    filename_tmpl: str = Field(
        "{}",
        description="Name of an LR picture, `{}` being the GT picture's name without extension: `'{}x4'`.",
    )
    io_backend: IOBackendOptions = Field(
        default_factory=IOBackendOptions, description="How pictures are read."
    )
    meta_info_file: str | None = Field(
        None, description="BasicSR's list of picture names, one a line; without it the whole folder."
    )
    gt_size: Int | None = Field(
        None, gt=0, description="Side of the ground-truth training crop in pixels; a multiple of `scale`."
    )
    use_hflip: bool = Field(True, description="Training: flip crops horizontally at random.")
    use_rot: bool = Field(True, description="Training: flip vertically and rotate by 90 degrees at random.")
    use_shuffle: bool = Field(True, description="Training: a new random order in each epoch.")
    num_worker_per_gpu: Int = Field(
        0, ge=0, description="Loader processes per device; 0 loads in the training process."
    )
    batch_size_per_gpu: Int = Field(16, gt=0, description="Crops per step and device.")
    dataset_enlarge_ratio: Int = Field(1, gt=0, description="How often each picture counts in one epoch.")
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(
        None, description="BasicSR's prefetching: `cpu`, `cuda` or none."
    )
    num_prefetch_queue: Int = Field(1, gt=0, description="Batches held ready by `prefetch_mode: cpu`.")
    pin_memory: bool = Field(False, description="Page-locked batches, for faster copies to a CUDA device.")
    persistent_workers: bool = Field(False, description="Keep loader processes from epoch to epoch.")
    cache_budget_mb: Int = Field(
        2048, ge=0, description="`CroppedImageDataset`: MiB of decoded pictures kept in memory, at most."
    )


class PathOptions(Section):
    """Checkpoints and folders; relative paths start at the current directory, `~` is the home folder."""

    pretrain_network_g: str | None = Field(
        None, description="Checkpoint of `network_g`: what is tested, or where training starts."
    )
    param_key_g: str = Field("params", description="Entry of that checkpoint: `params` or `params_ema`.")
    strict_load_g: bool = Field(True, description="Whether its names must match the network's exactly.")
    fp_pretrain_network_g: str | None = Field(
        None, description="Float checkpoint (EDSR or MSRResNet shaped) to start training from."
    )
    fp_init: Literal["all", "head_tail"] = Field(
        "all",
        description="What is taken of it: every matching tensor, or `conv_after_body`, `upsample` and `conv_last` as QuantSR does.",
    )
    pretrain_network_teacher: str | None = Field(None, description="Checkpoint of `network_teacher`.")
    param_key_teacher: str = Field("params", description="Entry of that checkpoint.")
    resume_state: str | None = Field(
        None, description="Training state to resume from; `--auto-resume` finds the newest of the run."
    )
    experiments_root: str = Field("experiments", description="Folder that holds one folder per training run.")
    results_root: str = Field("results", description="Folder that holds one folder per test run.")


class OptimizerOptions(Section):
    """The optimizer."""

    type: Literal["Adam", "AdamW"] = Field("Adam", description="`Adam` or `AdamW`.")
    lr: float = Field(gt=0, description="Learning rate at the start.")
    betas: list[float] = Field(
        default_factory=lambda: [0.9, 0.99], min_length=2, max_length=2, description="Adam's two decay rates."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: list[float]) -> list[float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must lie in [0, 1); for example [0.9, 0.99]")
        return value


class SchedulerOptions(Section):
    """The learning-rate schedule, BasicSR's; counts optimizer steps from the start of the run."""

    type: Literal["MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR"] = Field(
        description="Kind of schedule."
    )
    milestones: list[Int] | None = Field(
        None, description="MultiStep: iterations after which the rate is multiplied by `gamma`."
    )
    gamma: float | None = Field(None, gt=0, description="MultiStep: that factor; BasicSR's default is 0.1.")
    restarts: list[Int] | None = Field(
        None, description="MultiStep: iterations at which the rate starts again; default `[0]`."
    )
    periods: list[Int] | None = Field(
        None, min_length=1, description="Cosine: length of each cycle; default one cycle of `total_iter`."
    )
    restart_weights: list[float] | None = Field(
        None, description="Factor of the starting rate at each restart; default 1 each."
    )
    eta_min: float | None = Field(None, ge=0, description="Cosine: lowest learning rate; default 0.")

    @model_validator(mode="after")
    def _belongs(self) -> SchedulerOptions:
        cosine = self.type == "CosineAnnealingRestartLR"
        foreign = ("milestones", "gamma", "restarts") if cosine else ("periods", "eta_min")
        given = [key for key in foreign if getattr(self, key) is not None]
        if given:
            raise ValueError(f"{', '.join(given)} not an option of {self.type}; remove it or change the type")
        if not cosine and self.milestones is None:
            raise ValueError(f"milestones missing; {self.type} needs a list of iterations")
        cycles = len(self.periods or [0]) if cosine else len(self.restarts or [0])
        if self.restart_weights is not None and len(self.restart_weights) != cycles:
            raise ValueError(f"restart_weights must have {cycles} entries, one per cycle")
        return self

    def kwargs(self) -> dict[str, Any]:
        """The arguments of the scheduler's constructor, without those that keep its default."""
        return self.model_dump(exclude={"type"}, exclude_none=True)


class LossOptions(Section):
    """A pixel loss of BasicSR."""

    type: str = Field(
        "L1Loss", description="Name in BasicSR's loss registry: `L1Loss`, `MSELoss`, `CharbonnierLoss`."
    )
    loss_weight: float = Field(1.0, gt=0, description="Factor.")
    reduction: Literal["mean", "sum"] = Field("mean", description="`mean` or `sum` over pixels.")
    eps: float | None = Field(None, gt=0, description="`CharbonnierLoss`: its epsilon.")

    def kwargs(self) -> dict[str, Any]:
        """The arguments of the loss's constructor, without those that keep its default."""
        return self.model_dump(exclude={"type"}, exclude_none=True)


class DistillOptions(Section):
    """Learning from the float teacher `network_teacher` (QuantSR's losses)."""

    output_weight: float = Field(
        0.0, ge=0, description="Weight of the L1 distance between student's and teacher's output."
    )
    feature_weight: float = Field(0.0, ge=0, description="Weight of the feature loss; QuantSR uses 1e-4.")
    points: Int = Field(
        4, gt=0, description="How many blocks, evenly spread, are compared by the feature loss."
    )


class TrainOptions(Section):
    """Training: stage 1 at full depth, then the ranking of blocks, then stage 2 at all depths together."""

    total_iter: Int = Field(gt=0, description="Optimizer steps of both stages together.")
    stage1_fraction: float = Field(0.6, ge=0, le=1, description="Share of `total_iter` that stage 1 takes.")
    warmup_iter: Int = Field(-1, ge=-1, description="Steps of linear warm-up; -1 none.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay per step of the averaged copy of the weights; 0 keeps none."
    )
    optim_g: OptimizerOptions = Field(description="The optimizer.")
    step_lr_mult: float = Field(
        1.0, gt=0, description="Factor of the learning rate for quantizer steps and thresholds (tau)."
    )
    scheduler: SchedulerOptions = Field(description="The learning-rate schedule.")
    pixel_opt: LossOptions = Field(
        default_factory=LossOptions, description="The loss between output and ground truth."
    )
    distill: DistillOptions | None = Field(None, description="Distillation; needs `network_teacher`.")
    depth_weights: list[float] | None = Field(
        None, description="Stage 2: weight of each depth's loss, deepest first; default equal, together 1."
    )
    grad_clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of the gradient; none by default."
    )
    accumulate: Int = Field(
        1, gt=0, description="Batches whose gradients are added up for one optimizer step."
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Arithmetic of float layers; quantizers always use FP32."
    )
    channels_last: bool = Field(True, description="Channels-last memory layout.")
    compile: bool | Literal["auto"] = Field(
        "auto", description="Whether to use torch.compile; `auto` decides by the device."
    )
    exact_fp32: bool = Field(
        False, description="Forbid TF32 and other shortcuts, and choose deterministic kernels, on CUDA."
    )
    calibration_batches: Int = Field(
        1, gt=0, description="Training batches from which steps and signs are initialised."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_cycle(cls, value: Any) -> Any:
        scheduler = value.get("scheduler") if isinstance(value, dict) else None
        if not isinstance(scheduler, dict) or scheduler.get("type") != "CosineAnnealingRestartLR":
            return value
        if scheduler.get("periods") is not None or "total_iter" not in value:
            return value
        return {**value, "scheduler": {**scheduler, "periods": [value["total_iter"]]}}

    @property
    def stage1_iter(self) -> int:
        """Optimizer steps of stage 1 (full depth)."""
        return round(self.total_iter * self.stage1_fraction)

    @property
    def stage2_iter(self) -> int:
        """Optimizer steps of stage 2 (all depths)."""
        return self.total_iter - self.stage1_iter


class MetricOptions(Section):
    """A metric; the key above it is its name in tables."""

    type: str = Field(
        description="Name in BasicSR's metric registry: `calculate_psnr`, `calculate_ssim`, ..."
    )
    crop_border: Int = Field(ge=0, description="Pixels left out along each edge; default `scale`.")
    test_y_channel: bool = Field(False, description="Compare the Y channel of YCbCr instead of RGB.")
    better: Literal["higher", "lower"] = Field(
        "higher", description="Which direction is better, for the best checkpoint."
    )


class ValOptions(Section):
    """Evaluation, during training and in a test run."""

    val_freq: Int | None = Field(
        None, gt=0, description="Training: iterations between validations; needed when there is a `val` set."
    )
    save_img: bool = Field(False, description="Write the upscaled pictures.")
    num_save_img: Int | None = Field(
        None, ge=0, description="How many pictures of each set are written; default all."
    )
    suffix: str | None = Field(None, description="Ending of their names; default the run's name.")
    metrics: dict[str, MetricOptions] = Field(default_factory=dict, description="What is measured, by name.")
    depths: list[Int] | None = Field(
        None, min_length=1, description="Depths to evaluate; default all the network was made for."
    )
    baseline: bool = Field(True, description="Put MATLAB's bicubic beside the network.")
    selfensemble_testing: bool = Field(
        False, description="Average the outputs of the eight flips and rotations."
    )
    pbar: bool = Field(True, description="Show a progress bar.")


class WandbOptions(Section):
    """BasicSR's section for Weights & Biases, which is not used here: leave its keys empty."""

    project: None = Field(None, description="Must be empty; TensorBoard (`use_tb_logger`) is the log.")
    resume_id: None = Field(None, description="Must be empty.")


class LoggerOptions(Section):
    """Logs and checkpoints."""

    print_freq: Int = Field(100, gt=0, description="Iterations between log lines.")
    save_checkpoint_freq: Int = Field(5000, gt=0, description="Iterations between checkpoints.")
    use_tb_logger: bool = Field(True, description="Write a TensorBoard log.")
    wandb: WandbOptions | None = Field(None, description="Accepted from BasicSR's files; must hold nothing.")


class DistOptions(Section):
    """Training on several devices."""

    backend: Literal["nccl", "gloo"] = Field("nccl", description="`nccl` (CUDA) or `gloo` (CPU).")
    port: Int = Field(29500, gt=0, le=65535, description="Port of the first process.")
