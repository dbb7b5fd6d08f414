"""Padding, partitioning and masking of windows, compared with their definition."""

import pytest
import torch
import torch.nn.functional as F

from quantsr.archs.windows import (
    from_windows,
    reflect_pad,
    relative_positions,
    shifted_window_mask,
    to_windows,
)
from quantsr.basicsr_compat import SwinIR
from tests.reference import window_mask as reference

GRIDS = [((8, 8), 4, 2), ((4, 12), 4, 2), ((4, 4), 4, 1), ((16, 8), 8, 4), ((10, 15), 5, 2)]


@pytest.mark.parametrize(("grid", "window", "shift"), GRIDS)
def test_mask_is_the_definition(grid, window, shift):
    mask = shifted_window_mask(grid, window, shift, torch.device("cpu"))
    assert torch.equal(mask, reference.shifted_window_mask(*grid, window, shift))


def test_mask_is_swinirs():
    layer = SwinIR(img_size=64, embed_dim=6, depths=[2], num_heads=[1], window_size=8, upscale=1).layers[0]
    expected = layer.residual_group.blocks[1].calculate_mask((24, 40))
    assert torch.equal(shifted_window_mask((24, 40), 8, 4, torch.device("cpu")), expected)


def test_mask_is_kept_and_may_be_used_for_gradients_after_inference():
    device = torch.device("cpu")
    shifted_window_mask.cache_clear()
    with torch.inference_mode():
        mask = shifted_window_mask((8, 8), 4, 2, device)
    assert shifted_window_mask((8, 8), 4, 2, device) is mask
    assert not mask.is_inference()


@pytest.mark.parametrize(("grid", "window", "shift"), GRIDS)
@pytest.mark.parametrize("shifted", [True, False])
def test_windows_are_the_definition_and_are_inverted(grid, window, shift, shifted):
    shift = shift * shifted
    picture = torch.arange(grid[0] * grid[1])
    tokens = torch.stack([picture, picture + 1000], -1).unsqueeze(0).repeat(2, 1, 1)  # (B, L, 2)
    windows = to_windows(tokens, grid, window, shift)
    expected = torch.tensor(reference.windows_of(picture.view(grid).tolist(), window, shift))
    assert torch.equal(windows[: len(expected), :, 0], expected)
    assert torch.equal(windows[len(expected) :, :, 1], expected + 1000)
    assert torch.equal(from_windows(windows, grid, window, shift), tokens)


@pytest.mark.parametrize(("height", "width"), [(9, 15), (8, 10), (16, 8), (5, 7)])
def test_reflection_is_torchs_where_torch_can(height, width):
    x = torch.rand(2, 3, height, width)
    expected = F.pad(x, (0, -width % 8, 0, -height % 8), mode="reflect")
    assert torch.equal(reflect_pad(x, 8), expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [0] * 8), (2, [0, 1, 0, 1, 0, 1, 0, 1]), (3, [0, 1, 2, 1, 0, 1, 2, 1])],
)
def test_small_pictures_are_reflected_several_times(size, expected):
    x = torch.arange(size).float().view(1, 1, 1, size)
    padded = reflect_pad(x, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 5].tolist() == expected


def test_whole_windows_are_not_copied():
    x = torch.rand(1, 3, 8, 16)
    assert reflect_pad(x, 8) is x


def test_relative_positions_are_swinirs():
    net = SwinIR(img_size=64, embed_dim=6, depths=[1], num_heads=[1], window_size=8, upscale=1)
    expected = net.layers[0].residual_group.blocks[0].attn.relative_position_index
    assert torch.equal(relative_positions(8), expected)
