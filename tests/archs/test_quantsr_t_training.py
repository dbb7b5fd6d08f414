"""QuantSR-T in the engine: mini option file, SwinIR teacher, evaluation at any size."""

from pathlib import Path

import pytest
import torch

from quantsr.archs import QuantSR_T
from quantsr.basicsr_compat import SwinIR
from quantsr.config import load_options
from quantsr.engine import build
from quantsr.engine.network_file import network_file
from quantsr.engine.strips import forward_in_strips
from quantsr.engine.trainer import Trainer
from quantsr.models.distillation import Distillation
from quantsr.quant import calibrate, get_compile, set_compile, set_exact_fp32
from quantsr.quant.kernels import compiler_works
from quantsr.trained_files import checkpoint

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "options" / "train" / "QuantSR_T" / "mini_w4a4_x2.yml"
SMALL = {"embed_dim": 12, "num_block": 4, "layers_per_block": 2, "num_heads": 3, "upscale": 2}
TEACHER = {
    **{"img_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [4, 4], "window_size": 8},
    **{"mlp_ratio": 2, "upscale": 2, "img_range": 1.0, "upsampler": "pixelshuffledirect"},
}

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR


@pytest.fixture(autouse=True)
def _plain_kernels():
    mode = get_compile()
    yield
    set_compile(mode)
    set_exact_fp32(False)


@pytest.fixture
def teacher_file(tmp_path):
    """A float SwinIR as BasicSR saves it."""
    file = tmp_path / "swinir.pth"
    torch.save({"params": SwinIR(**TEACHER).state_dict()}, file)
    return file


def mini_options(tmp_path, *overrides):
    return load_options(
        str(MINI),
        [
            f"path.experiments_root={tmp_path}",
            f"datasets.train.dataroot_gt={ROOT / 'datasets' / 'mini'}",
            "datasets.val=null",
            "datasets.train.batch_size_per_gpu=2",
            "num_gpu=0",
            "train.total_iter=2",
            "train.stage1_fraction=0.5",
            "train.compile=false",
            "logger.use_tb_logger=false",
            *overrides,
        ],
    )


@pytest.mark.parametrize("unit", ["rstb", pytest.param("layer", marks=pytest.mark.integration)])
def test_the_mini_option_file_trains_with_a_swinir_teacher(tmp_path, teacher_file, unit):
    """One iteration of each stage in bfloat16, from the teacher's weights, all layers quantized."""
    teacher = " ".join(
        f"{key}: {str(value)!r}," if isinstance(value, str) else f"{key}: {value},"
        for key, value in TEACHER.items()
    )
    depths = "[4, 2]" if unit == "rstb" else "[8, 3]"
    options = mini_options(
        tmp_path,
        f"network_teacher={{type: SwinIR, {teacher}}}",
        f"network_g.dqa_unit={unit}",
        f"network_g.depths={depths}",
        "network_g.quantize_attention=true",
        "network_g.quantize_conv=true",
        f"path.pretrain_network_teacher={teacher_file}",
        f"path.fp_pretrain_network_g={teacher_file}",
        "train.distill={output_weight: 0.5, feature_weight: 0.01, points: 2}",
    )
    trainer = Trainer(options)
    trainer.run()
    assert {"l_pix", "l_teacher", "l_feature"} <= trainer.model.loss_terms.keys()
    assert all(term.isfinite() for term in trainer.model.loss_terms.values())
    file = Path(options.experiment_folder) / "models" / "net_g_latest.pth"
    net = build.build_for_options(options)
    assert build.load_checkpoint(net, str(file)) == 2
    assert len(net.ranking) == (4 if unit == "rstb" else 8)
    start = torch.load(teacher_file, weights_only=True)["params"]
    moved = (
        net.layers[0].blocks[0].attn.qkv.weight - start["layers.0.residual_group.blocks.0.attn.qkv.weight"]
    )
    assert 0 < moved.abs().max() < 0.01  # two Adam steps from the teacher


def test_distillation_compares_the_outputs_of_rstbs():
    torch.manual_seed(0)
    net = QuantSR_T(**SMALL, nbits_w=32, nbits_a=32)
    net.set_ranking(range(4))
    teacher = SwinIR(**{**TEACHER, "embed_dim": 12, "depths": [2] * 4, "num_heads": [3] * 4})
    net.load_float(teacher.state_dict())
    distillation = Distillation(net, teacher, output_weight=0.0, feature_weight=1.0, points=4)
    x = torch.rand(1, 3, 16, 16)
    target = distillation.teacher_output(x)
    outputs = net(x, depth=(4, 2))
    assert distillation.losses(outputs, (0.5, 0.5), target)["l_feature"] < 1e-5


def test_a_swinir_checkpoint_loads_into_a_float_network(teacher_file):
    options = {"num_block": 2, "embed_dim": 24, "num_heads": 4, "layers_per_block": 2, "upscale": 2}
    net = build.build_network("QuantSR_T", {**options, "nbits_w": 32, "nbits_a": 32})
    with torch.no_grad():
        net.layers[0].shortcut.fill_(3)
    build.load_checkpoint(net, str(teacher_file))
    theirs = build.build_network("SwinIR", TEACHER)
    build.load_checkpoint(theirs, str(teacher_file))
    x = torch.rand(1, 3, 11, 9)  # the engine's SwinIR takes any size too
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs.eval()(x), rtol=0, atol=1e-5)
    assert build.title(theirs) == "float SwinIR"


def test_a_swinir_checkpoint_is_refused_for_a_quantized_network(teacher_file):
    from quantsr.errors import InputError

    net = build.build_network("QuantSR_T", {**SMALL, "embed_dim": 24, "num_heads": 4, "num_block": 2})
    with pytest.raises(InputError, match="fp_pretrain_network_g"):
        build.load_checkpoint(net, str(teacher_file))


def test_strips_begin_at_multiples_of_the_window():
    """Each strip has the same windows as the whole picture."""
    net = QuantSR_T(**SMALL)
    calibrate(net, [torch.rand(1, 3, 16, 16)])
    starts = []

    def forward(x):
        starts.append(int(x[0, 0, 0, 0]))
        return (torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"),)

    x = torch.arange(157.0).view(1, 1, -1, 1).repeat(1, 3, 1, 8)  # each pixel its row
    (out,) = forward_in_strips(net, forward, x, 2, max_output_pixels=100 * 4 * 8)
    assert torch.equal(out, forward(x)[0])
    assert starts[:-1] == [0, 0, 32, 64, 96]  # 32 rows each, and four windows of margin before them


def test_a_network_file_restores_the_ranking_of_swin_layers(tmp_path):
    """The ranking is restored with the weights."""
    net = QuantSR_T(**SMALL, dqa_unit="layer", depths=[8, 5])
    calibrate(net, [torch.rand(1, 3, 8, 8)])
    net.set_ranking([3, 1, 2, 0, 7, 6, 5, 4])
    file = tmp_path / "net.pth"
    checkpoint.save(file, network_file(net, None, iteration=1))
    from quantsr.loading import load

    rebuilt = load(file)
    assert rebuilt.ranking == net.ranking
    assert rebuilt.depths == (8, 5)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(rebuilt(x, depth=5), net.eval()(x, depth=5))


@pytest.mark.integration
def test_compiled_kernels_give_the_same_with_few_graphs():
    """Linear layers of four sizes share kernels: too many recompilations disable compiling."""
    if not compiler_works("cpu"):
        pytest.skip("no compiler")
    results = []
    for compiled in (False, True):
        set_compile(False)
        torch.manual_seed(0)
        net = QuantSR_T(**{**SMALL, "num_block": 2}, quantize_attention=True, quantize_conv=True)
        x = torch.rand(2, 3, 16, 16)
        calibrate(net, [x])
        set_compile(compiled)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        out.float().square().mean().backward()
        results.append([out.detach().float(), *(p.grad for p in net.parameters())])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 20
    for plain, fast in zip(*results, strict=True):
        assert (plain - fast).norm() <= 1e-3 * plain.norm() + 1e-8
