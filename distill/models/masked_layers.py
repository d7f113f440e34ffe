"""Layers that do not see padding: what comes out for an utterance is the same in any batch.

Everything between layers obeys one rule: frames past an utterance's length are exactly zero. A
convolution then reads the zeros it would read past the end of the tensor, and sums over time are
sums over valid frames. Frames are removed with `masked_fill`, never by multiplying: 0 * inf is NaN.

Shapes: B batch, C channels, T frames, S spatial axes (none for 1-D, two for 3-D), G groups.
"""

import math

import torch
from torch import Tensor, nn

from lact_asr.model.masks import length_mask


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Frames left of `lengths` after a layer of this stride: ceil(length / stride).

    Every layer here pads (kernel - 1) / 2 on both sides, for which this holds at odd kernels, and
    frame t then looks at input frames around t * stride, whatever the longest of the batch.
    """
    return (lengths + stride - 1) // stride


def silence(x: Tensor, lengths: Tensor) -> Tensor:
    """[B,C,T,*S] with the frames past each length set to zero."""
    past = ~length_mask(lengths, x.shape[2])
    return x.masked_fill(past.view(len(x), 1, -1, *[1] * (x.dim() - 3)), 0.0)


def hold_last_frame(x: Tensor, lengths: Tensor, margin: int) -> Tensor:
    """(B, C, T + 2 * margin, *S): the first frame repeated before, the last valid one after."""
    frames = torch.arange(-margin, x.shape[2] + margin, device=x.device)
    index = frames.clamp_min(0).minimum((lengths - 1).clamp_min(0)[:, None])  # (B, T + 2 * margin)
    shape = (len(x), 1, index.shape[1], *[1] * (x.dim() - 3))
    return x.gather(2, index.view(shape).expand(-1, x.shape[1], -1, *x.shape[3:]))


def groups_of(channels: int) -> int:
    """32 groups, or fewer so that they divide the channels and hold four or more each."""
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return groups


class MaskedNorm(nn.Module):
    """GroupNorm or BatchNorm over valid frames, then a gain and a shift per channel.

    `group` (up to 32 groups) makes an utterance independent of its batch. `batch` is there to show
    what goes wrong with it at two utterances a batch. The variance is E[x^2] - E[x]^2 in float32:
    one tensor is kept for the backward pass where centring first keeps three. It loses digits only
    where |mean| is hundreds of standard deviations; here it is a few.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum = 0.1  # share of the newest batch in the running statistics of `batch`

    def __init__(self, channels: int, kind: str = "group", epsilon: float = 1e-5) -> None:
        super().__init__()
        self.kind, self.epsilon = kind, epsilon
        self.groups = groups_of(channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B,C,T,*S], zero past the lengths, to the same shape, zero there again."""
        x = x.float()
        mean, variance = self._moments(x, lengths)  # [B,C] or [1,C]
        scale = (variance + self.epsilon).rsqrt() * self.weight
        shift = (self.bias - mean * scale).expand(len(x), -1)
        ones = [1] * (x.dim() - 3)
        mask = length_mask(lengths, x.shape[2])
        shift = shift[:, :, None].where(mask[:, None], 0.0).view(*x.shape[:3], *ones)
        return torch.addcmul(shift, x, scale[:, :, None].view(*scale.shape, 1, *ones))

    def _moments(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "batch" and not self.training:
            return self.running_mean[None], self.running_var[None]
        axes = list(range(2, x.dim()))
        sums = torch.stack([x.sum(axes), x.square().sum(axes)])  # (2, B, C)
        count = lengths.clamp_min(1) * math.prod(x.shape[3:])  # values per utterance and channel
        if self.kind == "group":
            grouped = sums.unflatten(2, (self.groups, -1)).mean(-1) / count[:, None]  # (2, B, G)
            mean, square = grouped.repeat_interleave(sums.shape[2] // self.groups, dim=2)
            return mean, (square - mean.square()).clamp_min(0)
        mean, square = sums.sum(1, keepdim=True) / count.sum()
        variance = (square - mean.square()).clamp_min(0)
        self._remember(mean[0], variance[0])
        return mean, variance

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """A batch with a NaN, whose step is dropped, must not spoil every validation after it."""
        for running, newest in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(newest.where(newest.isfinite(), running), self.momentum)
