"""Masked layers against the plain ones of torch, run on each utterance alone."""

import pytest
import torch
from torch.nn import functional as F

from distill.models.masked_layers import (
    MaskedNorm,
    groups_of,
    hold_last_frame,
    silence,
    strided_lengths,
)
from lact_asr.model.masks import length_mask


def ragged(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    lengths = torch.tensor([shape[2], shape[2] - 3, 2])[: shape[0]]
    return silence(3 + 2 * torch.randn(*shape), lengths), lengths


@pytest.mark.parametrize("shape", [(3, 48, 9), (3, 48, 9, 4, 2)])
def test_group_norm_of_a_padded_utterance_is_torchs_of_the_utterance_alone(shape):
    x, lengths = ragged(*shape)
    norm = MaskedNorm(48)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    out = norm(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = F.group_norm(x[row : row + 1, :, :length], 8, norm.weight, norm.bias)
        torch.testing.assert_close(out[row : row + 1, :, :length], alone, atol=1e-5, rtol=1e-5)
        assert not out[row, :, length:].any(), "frames past the length must stay zero"


def test_groups_divide_the_channels_and_hold_four_or_more():
    for channels in range(8, 840, 8):
        groups = groups_of(channels)
        assert channels % groups == 0 and channels // groups >= 4 and groups <= 32
    assert groups_of(512) == 32


def test_batch_norm_counts_valid_frames_only_and_remembers_them():
    x, lengths = ragged(3, 8, 9)
    norm = MaskedNorm(8, "batch")
    out = norm(x, lengths)
    rows = x.transpose(1, 2)[length_mask(lengths, 9)]  # (valid frames, C)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(out.transpose(1, 2)[length_mask(lengths, 9)], expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0, unbiased=False))
    norm.eval()
    single = norm(x[:1], lengths[:1])
    torch.testing.assert_close(single, norm(x, lengths)[:1])


def test_silence_clears_nan_and_lets_no_nan_into_the_gradient():
    x = torch.full((1, 1, 3), torch.nan)
    x[0, 0, 0] = 2.0
    x.requires_grad_()
    cleared = silence(x, torch.tensor([1]))
    cleared.square().sum().backward()
    assert cleared.tolist() == [[[2, 0, 0]]]
    assert x.grad.tolist() == [[[4, 0, 0]]]


def test_the_last_valid_frame_is_held_not_the_last_frame_of_the_batch():
    x = torch.arange(1.0, 9.0).view(2, 1, 4)
    held = hold_last_frame(x, torch.tensor([4, 2]), margin=2)
    assert held[0, 0].tolist() == [1, 1, 1, 2, 3, 4, 4, 4]
    assert held[1, 0].tolist() == [5, 5, 5, 6, 6, 6, 6, 6]


def test_lengths_after_a_stride_are_those_of_the_convolution():
    for length in range(1, 12):
        out = F.conv1d(torch.zeros(1, 1, length), torch.zeros(1, 1, 5), stride=2, padding=2)
        assert strided_lengths(torch.tensor(length), 2) == out.shape[-1]


def test_a_batch_with_a_nan_leaves_the_running_statistics_of_sound_ones():
    norm, lengths = MaskedNorm(2, "batch"), torch.tensor([5, 5])
    sound = torch.randn(2, 2, 5)
    norm(sound, lengths)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    broken = sound.clone()
    broken[0, 1, 2] = torch.nan
    norm(broken, lengths)
    assert all(value.isfinite().all() for value in norm.buffers())
    assert torch.equal(norm.running_mean[1], before["running_mean"][1])
    assert not torch.equal(norm.running_mean[0], before["running_mean"][0])
