"""The inflated Inception trunk of I3D over clips, with masks instead of trimmed batches.

Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?" (the released Inception-v1 layer
table). What differs, and why: temporal stride is 2 for log-mel clips and 1 for video, not 8, for
character CTC needs 25 frames a second; padding is the same on both sides, so that frame t of an
utterance does not move with the batch's longest; GroupNorm replaces BatchNorm, whose statistics of
two utterances made the original teacher diverge; the last pool is 3x3 like the others.

Shapes: B batch, C channels, T frames, H and W the spatial axes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.models.masked_layers import MaskedNorm, hold_last_frame, silence, strided_lengths

Triple = tuple[int, int, int]  # time, height, width

# 1x1, (1x1 -> 3x3x3), (1x1 -> 3x3x3), pool -> 1x1: output channels of the six convolutions
MIXED_3 = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
MIXED_4 = (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)
MIXED_5 = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))


def inflate_2d(weight: Tensor, frames: int, mode: str = "mean") -> Tensor:
    """Image weights (O, I/groups, kh, kw) as video weights (O, I/groups, frames, kh, kw).

    `mean` repeats w / frames, `centre` puts w on the middle frame: on a clip that does not change,
    both give the output of the image network.
    """
    if mode == "mean":
        return (weight / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    inflated = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    inflated[:, :, frames // 2] = weight
    return inflated


class Unit3D(nn.Module):
    """Convolution without bias, norm, ReLU. Frames past the length are zero before and after."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        norm: str = "group",
        hold_edges: bool = False,
    ) -> None:
        super().__init__()
        self.margin = kernel[0] // 2 if hold_edges else 0  # frames to repeat at both ends of time
        padding = (kernel[0] // 2 - self.margin, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm = MaskedNorm(outputs, norm)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B,C,T,H,W] and [B] to the same after ceil-division by the strides."""
        if self.margin:
            x = hold_last_frame(x, lengths, self.margin)
        x = self.conv(x)
        lengths = strided_lengths(lengths, self.conv.stride[0])
        if self.conv.kernel_size[0] > 1:  # it wrote past the end; 1x1x1 maps zero to zero
            x = silence(x, lengths)
        return F.relu(self.norm(x, lengths)), lengths


class Pool3D(nn.Module):
    """Max pool; its inputs come from ReLUs, so the zeros past the length never win."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.stride = stride[0]
        self.pool = nn.MaxPool3d(kernel, stride, tuple(size // 2 for size in kernel))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As Unit3D."""
        lengths = strided_lengths(lengths, self.stride)
        return silence(self.pool(x), lengths), lengths


class Mixed(nn.Module):
    """The Inception block: four views of the input, concatenated."""

    def __init__(self, inputs: int, channels: tuple[int, ...], unit: Callable[..., Unit3D]) -> None:
        super().__init__()
        one, narrow_a, wide_a, narrow_b, wide_b, pooled = channels
        cube = (3, 3, 3)
        self.one = unit(inputs, one)
        self.narrow_a = unit(inputs, narrow_a)
        self.wide_a = unit(narrow_a, wide_a, cube)
        self.narrow_b = unit(inputs, narrow_b)
        self.wide_b = unit(narrow_b, wide_b, cube)
        self.pool = Pool3D(cube, (1, 1, 1))
        self.pooled = unit(inputs, pooled)
        self.outputs = one + wide_a + wide_b + pooled

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As Unit3D, at stride 1."""
        views = [
            self.one(x, lengths),
            self.wide_a(*self.narrow_a(x, lengths)),
            self.wide_b(*self.narrow_b(x, lengths)),
            self.pooled(*self.pool(x, lengths)),
        ]
        return torch.cat([view for view, _ in views], dim=1), lengths


class Trunk(nn.Module):
    """57 convolutions, the longest path 21, from clips to one vector per frame.

    Strides: space 2 five times (80x16 to 3x1, 112x112 to 4x4), time `time_stride` once, at pool 4.
    `width` scales every channel count of the table, `blocks` keeps the first at each scale.
    """

    def __init__(
        self,
        inputs: int,
        width: float,
        time_stride: int,
        norm: str = "group",
        blocks: Triple = (2, 5, 2),
        hold_edges: bool = False,
    ) -> None:
        super().__init__()
        unit = partial(Unit3D, norm=norm, hold_edges=hold_edges)
        first, second = scale_channels((64, 192), width)
        self.layers = nn.ModuleList(
            [
                unit(inputs, first, (7, 7, 7), (1, 2, 2)),
                Pool3D((1, 3, 3), (1, 2, 2)),
                unit(first, first),
                unit(first, second, (3, 3, 3)),
                Pool3D((1, 3, 3), (1, 2, 2)),
            ]
        )
        self.outputs = second
        pools = (Pool3D((3, 3, 3), (time_stride, 2, 2)), Pool3D((1, 3, 3), (1, 2, 2)), None)
        for table, kept, pool in zip((MIXED_3, MIXED_4, MIXED_5), blocks, pools, strict=True):
            for channels in table[:kept]:
                mixed = Mixed(self.outputs, scale_channels(channels, width), unit)
                self.layers.append(mixed)
                self.outputs = mixed.outputs
            if pool:
                self.layers.append(pool)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B,inputs,T,H,W], [B] to [B,ceil(T/time_stride),outputs], [B]."""
        x = silence(x, lengths)
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        return x.mean((3, 4)).transpose(1, 2), lengths


def scale_channels(channels: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Channel counts times `width`, in steps of 8 (every count of the table is one at width 1)."""
    return tuple(max(8, round(count * width / 8) * 8) for count in channels)
