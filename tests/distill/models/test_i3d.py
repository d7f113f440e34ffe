"""The inflated Inception trunk: sizes of the published table, inflation, padding."""

import pytest
import torch
from torch.nn import functional as F

from distill.models.i3d import Trunk, Unit3D, inflate_2d
from distill.models.registry import count_layers
from lact_asr.model.interface import count_parameters


@pytest.mark.parametrize("mode", ["mean", "centre"])
def test_an_inflated_unit_on_a_still_clip_gives_what_the_image_network_gives(mode):
    torch.manual_seed(0)
    image, weight = torch.randn(2, 3, 9, 6), torch.randn(32, 3, 7, 7)
    unit = Unit3D(3, 32, (7, 7, 7), (1, 2, 2), hold_edges=True)
    unit.conv.weight.data = inflate_2d(weight, 7, mode)
    lengths = torch.tensor([8, 5])
    film, _ = unit(image[:, :, None].repeat(1, 1, 8, 1, 1), lengths)
    still = F.relu(F.group_norm(F.conv2d(image, weight, stride=2, padding=3), 8))
    for row, length in enumerate(lengths.tolist()):
        for frame in range(length):
            torch.testing.assert_close(film[row, :, frame], still[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "centre"])
def test_inflated_weights_keep_size_groups_and_strides(mode):
    torch.manual_seed(0)
    image, weight = torch.randn(2, 8, 9, 6), torch.randn(16, 2, 3, 3)  # 4 groups of 2 inputs
    inflated = inflate_2d(weight, 5, mode)
    film = F.conv3d(image[:, :, None].repeat(1, 1, 5, 1, 1), inflated, stride=(1, 2, 2), groups=4)
    still = F.conv2d(image, weight, stride=2, groups=4)
    torch.testing.assert_close(film[:, :, 0], still, atol=1e-5, rtol=1e-5)


def test_inflation_at_the_centre_looks_at_the_middle_frame_only():
    weight = torch.randn(4, 2, 3, 3)
    inflated = inflate_2d(weight, 5, "centre")
    assert inflated[:, :, 2].equal(weight)
    assert not inflated[:, :, [0, 1, 3, 4]].any()


def test_the_trunk_has_the_published_layers_and_parameters():
    assert count_layers(Trunk(1, 1.0, 2)) == 57
    assert count_parameters(Trunk(1, 1.0, 2)) == 12_243_360
    assert count_parameters(Trunk(3, 0.5, 1)) == pytest.approx(3.10e6, rel=0.01)


@pytest.mark.parametrize("hold_edges", [False, True])
def test_padding_and_its_contents_do_not_change_the_trunk(hold_edges):
    torch.manual_seed(0)
    trunk = Trunk(1, 0.125, 2, blocks=(1, 1, 1), hold_edges=hold_edges)
    short = torch.randn(1, 1, 13, 32, 8)
    alone, lengths = trunk(short, torch.tensor([13]))
    padded = torch.full((2, 1, 20, 32, 8), torch.nan)
    padded[0, :, :13], padded[1] = short[0], torch.randn(1, 20, 32, 8)
    together, both = trunk(padded, torch.tensor([13, 20]))
    assert lengths.tolist() == [7] and both.tolist() == [7, 10]
    torch.testing.assert_close(together[:1, :7], alone, atol=1e-5, rtol=0)
