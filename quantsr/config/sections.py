"""The sections of an option file; those of training are in ``training.py``. Names and meanings are
BasicSR's wherever BasicSR has the key.

The descriptions are the documentation: ``docs/reference/options.md`` is generated from them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from quantsr.config.base import FolderName, Int, OutputFolder, Registered, Section


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
        default="disk", description="`disk` (folders of pictures) or `lmdb` (BasicSR's LMDB folders)."
    )


class DatasetOptions(Registered):
    """A data set; its key, `train`, `val`, `val_2`, ..., `test`, `test_1`, ..., gives its phase.

    Data sets of other types than the three named below take further keys as arguments.
    """

    name: FolderName = Field(min_length=1, description="Name in logs, tables and result folders.")
    type: str = Field(
        description="Kind of data set: `PairedImageDataset` (BasicSR's: LR and GT folders), `CroppedImageDataset` (training crops from GT pictures of any "
        "size, kept decoded in memory) or `SkimageDataset` (astronaut, coffee and chelsea of scikit-image; needs no folder)."
    )
    phase: Literal["train", "val", "test"] = Field(description="Derived from the key; need not be written.")
    dataroot_gt: str | list[str] | None = Field(
        default=None,
        description="Folder of ground-truth pictures; `CroppedImageDataset` takes a list of folders too. `~` is the home folder.",
    )
    dataroot_lq: str | list[str] | None = Field(
        default=None,
        description="Folder(s) of low-resolution pictures. Without it they are made by MATLAB's bicubic, bit for bit; only training with "
        "`PairedImageDataset` needs it.",
    )
    dataroot_soft: str | list[str] | None = Field(
        default=None,
        description="`CroppedImageDataset`: folder(s) of another network's outputs on the LR pictures, under the names of the GT pictures; "
        "further targets, weighted by `train.distill.soft_weight`.",
    )
    filename_tmpl: str = Field(
        default="{}",
        description="Name of an LR picture, `{}` being the GT picture's name without extension: `'{}x4'`.",
    )
    optional: bool = Field(
        default=False,
        description="`val` and `test` sets: leave this set out, and log that, where the folder `dataroot_gt` does not exist.",
    )
    io_backend: IOBackendOptions = Field(
        default_factory=IOBackendOptions, description="How pictures are read."
    )
    meta_info_file: str | None = Field(
        default=None, description="BasicSR's list of picture names, one a line; without it the whole folder."
    )
    gt_size: Int | None = Field(
        default=None,
        gt=0,
        description="Side of the ground-truth training crop in pixels; a multiple of `scale`.",
    )
    use_hflip: bool = Field(default=True, description="Training: flip crops horizontally at random.")
    use_rot: bool = Field(
        default=True, description="Training: flip vertically and rotate by 90 degrees at random."
    )
    use_shuffle: bool = Field(default=True, description="Training: a new random order in each epoch.")
    num_worker_per_gpu: Int = Field(
        default=0, ge=0, description="Loader processes per device; 0 loads in the training process."
    )
    batch_size_per_gpu: Int = Field(default=16, gt=0, description="Crops per step and device.")
    dataset_enlarge_ratio: Int = Field(
        default=1, gt=0, description="How often each picture counts in one epoch."
    )
    prefetch_mode: Literal["cpu", "cuda"] | None = Field(
        default=None, description="Accepted from BasicSR's files, without effect."
    )
    num_prefetch_queue: Int = Field(
        default=1, gt=0, description="Batches loaded ahead (by each loader process), 3 at least."
    )
    pin_memory: bool = Field(
        default=False, description="Page-locked batches, for faster copies to a CUDA device."
    )
    persistent_workers: bool = Field(
        default=False,
        description="Accepted from BasicSR's files, without effect: loader processes are always kept.",
    )
    cache_budget_mb: Int = Field(
        default=2048,
        ge=0,
        description="`CroppedImageDataset`: MiB of decoded pictures kept in memory, at most.",
    )
    device_cache: bool | Literal["auto"] = Field(
        default="auto",
        description="`CroppedImageDataset`: whether the pictures are kept on the GPU too and crops cut there, the same ones; `auto` where they take "
        "at most half of its free memory.",
    )
    crop_sampling: Literal["area", "picture"] = Field(
        default="area",
        description="`CroppedImageDataset`: crops equally likely at every pixel (`area`), or equally many from each picture (`picture`).",
    )
    crop_choice: Literal["uniform", "gradient"] = Field(
        default="uniform",
        description="`CroppedImageDataset`: crops equally likely at every position (`uniform`), or, of two positions, the one whose crop has the larger "
        "mean gradient (`gradient`), which gives more crops of edges and textures and fewer of smooth areas.",
    )


class PathOptions(Section):
    """Checkpoints and folders; relative paths start at the current directory, `~` is the home
    folder."""

    pretrain_network_g: str | None = Field(
        default=None,
        description="Checkpoint of `network_g`, which is tested, or from which training starts. A test also takes a packed `.safetensors` file, "
        "the name of a training run or that of a network that comes with quantsr.",
    )
    param_key_g: str = Field(
        default="params", description="Entry of that checkpoint: `params` or `params_ema`."
    )
    strict_load_g: bool = Field(
        default=True, description="Whether its names must match the network's exactly."
    )
    fp_pretrain_network_g: str | None = Field(
        default=None, description="Float checkpoint (EDSR or MSRResNet shaped) to start training from."
    )
    fp_init: Literal["all", "head_tail", "deepen"] = Field(
        default="all",
        description="The tensors used from it: `all`: every matching one; `head_tail`: `conv_after_body`, `upsample` and `conv_last`, as in QuantSR; "
        "`deepen`: all of a network with fewer blocks, between which new blocks are inserted that add nothing at first, or little where `network_g` "
        "is quantized (QuantSR_C). A quantized checkpoint keeps its quantizers' steps, and must have the same bits.",
    )
    pretrain_network_teacher: str | None = Field(default=None, description="Checkpoint of `network_teacher`.")
    param_key_teacher: str = Field(default="params", description="Entry of that checkpoint.")
    resume_state: str | None = Field(
        default=None,
        description="Training state to resume from; `--auto-resume` finds the newest of the run.",
    )
    experiments_root: OutputFolder = Field(
        default="experiments", description="Folder that holds one folder per training run."
    )
    results_root: OutputFolder = Field(
        default="results", description="Folder that holds one folder per test run."
    )


class MetricOptions(Registered):
    """A metric: ``type`` and, beside it, arguments of its function; the key above it is its name in
    tables."""

    type: str = Field(
        description="Name in BasicSR's metric registry: `calculate_psnr`, `calculate_ssim`, ..., or another registered one."
    )
    crop_border: Int = Field(
        ge=0, description="Pixels left out along each edge.", json_schema_extra={"default": "`scale`"}
    )
    test_y_channel: bool = Field(default=False, description="Compare the Y channel of YCbCr instead of RGB.")
    better: Literal["higher", "lower"] = Field(
        default="higher", description="Which direction is better, for the best checkpoint."
    )


class ValOptions(Section):
    """Evaluation, during training and in a test run."""

    val_freq: Int | None = Field(
        default=None,
        gt=0,
        description="Training: iterations between validations; needed when there is a `val` set.",
    )
    save_img: bool = Field(default=False, description="Write the upscaled pictures.")
    num_save_img: Int | None = Field(
        default=None, ge=0, description="How many pictures of each set are written; default all."
    )
    suffix: str | None = Field(default=None, description="Ending of their names; default the run's name.")
    metrics: dict[str, MetricOptions] = Field(default_factory=dict, description="The metrics, by name.")
    depths: list[Int] | None = Field(
        default=None, min_length=1, description="Depths to evaluate; default all the network was made for."
    )
    baseline: bool = Field(default=True, description="Evaluate MATLAB's bicubic too.")
    selfensemble_testing: bool = Field(
        default=False, description="Average the outputs of the eight flips and rotations."
    )
    engine: Literal["torch", "auto", "native", "openvino", "onnxruntime", "ncnn"] = Field(
        default="torch",
        description="`quantsr test`: the engine; all but `torch` run the integer network of a packed file, far faster on a CPU.",
    )
    pbar: bool = Field(default=True, description="Show a progress bar.")


class WandbOptions(Section):
    """BasicSR's section for Weights & Biases, which is not used here: leave its keys empty."""

    project: None = Field(
        default=None, description="Must be empty; TensorBoard (`use_tb_logger`) is the log."
    )
    resume_id: None = Field(default=None, description="Must be empty.")


class LoggerOptions(Section):
    """Logs and checkpoints."""

    print_freq: Int = Field(default=100, gt=0, description="Iterations between log lines.")
    save_checkpoint_freq: Int = Field(default=5000, gt=0, description="Iterations between checkpoints.")
    keep_states: Int = Field(
        default=3,
        ge=0,
        description="How many training states are kept, the newest; 0 keeps all. Network files are all kept.",
    )
    use_tb_logger: bool = Field(default=True, description="Write a TensorBoard log.")
    wandb: WandbOptions | None = Field(
        default=None, description="Accepted from BasicSR's files; must hold nothing."
    )


class DistOptions(Section):
    """Training on several devices."""

    backend: Literal["nccl", "gloo"] = Field(default="nccl", description="`nccl` (CUDA) or `gloo` (CPU).")
    port: Int = Field(default=29500, gt=0, le=65535, description="Port of the first process.")
