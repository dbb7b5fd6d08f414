"""scripts/average_checkpoints.py: the average of two networks, and files that are refused."""

import pytest
import torch

from quantsr import load
from quantsr.archs import QuantSR_C
from quantsr.engine.network_file import network_file
from quantsr.quant import calibrate
from quantsr.trained_files import checkpoint
from tests.scripts import load_script

average_checkpoints = load_script("average_checkpoints")


@pytest.fixture
def written(tmp_path):
    """A function that writes a small network with random weights to a file, and returns both."""

    def write(seed, *, num_feat=4, ranking=(1, 0)):
        torch.manual_seed(seed)
        net = QuantSR_C(num_feat=num_feat, num_block=2, upscale=2, depths=(2, 1))
        calibrate(net, [torch.rand(1, 3, 8, 8)])
        net.set_ranking(ranking)
        path = tmp_path / f"{seed}.pth"
        checkpoint.save(path, network_file(net, None, iteration=seed))
        return net, path

    return write


def test_the_average_lies_between_and_keeps_ranking_and_depths(written, tmp_path):
    (first, before), (last, after) = written(1), written(2)
    out = tmp_path / "between.pth"
    assert average_checkpoints.main([str(before), str(after), "--weight", "0.25", "-o", str(out)]) == 0
    net = load(out)
    assert net.ranking == (1, 0)
    assert tuple(net.depths) == (2, 1)
    states = [dict(n.state_dict()) for n in (first, net, last)]
    for name, value in states[1].items():
        a, b = states[0][name], states[2][name]
        expected = 0.75 * a + 0.25 * b if value.is_floating_point() else b
        assert torch.equal(value, expected), name
    with torch.no_grad():
        assert net(torch.rand(1, 3, 5, 6), depth=1).shape == (1, 3, 10, 12)


def test_the_moving_averages_are_used(written, tmp_path):
    (first, _), (last, after) = written(1), written(2)
    both = tmp_path / "both.pth"
    checkpoint.save(both, network_file(last, first, iteration=1))
    out = tmp_path / "out.pth"
    assert average_checkpoints.main([str(both), str(after), "--weight", "0", "-o", str(out)]) == 0
    assert torch.equal(load(out).conv_first.weight, first.conv_first.weight)


@pytest.mark.parametrize("other", [{"num_feat": 8}, {"ranking": (0, 1)}])
def test_other_networks_are_refused(written, tmp_path, capsys, other):
    (_, before), (_, after) = written(1), written(2, **other)
    out = tmp_path / "out.pth"
    assert average_checkpoints.main([str(before), str(after), "-o", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {before}: its ")
    assert not out.exists()


def test_a_weight_outside_0_to_1_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        average_checkpoints.main(["a.pth", "b.pth", "--weight", "1.5", "-o", str(tmp_path / "out.pth")])
    assert stop.value.code == 2
    assert "--weight" in capsys.readouterr().err
