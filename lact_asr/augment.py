"""Variety for training: speed perturbation and SpecAugment, batched, on the waves' own device.

Both draw from torch's global generators, which the loop seeds with (seed, step, rank) before each
step: what is drawn is a function of those three, and a resumed run repeats it. Nothing is warped in
time by SpecAugment, so the frames of two views, or of a teacher and its student, stay aligned.

Legend: B utterances, N samples, T frames, M mel bands, K masks.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lact_asr.audio import resampling_kernel
from lact_asr.data import Batch
from lact_asr.recipe import AugmentConfig

BANDS = 80  # of the spectrum in which the settings give the width of a frequency mask
FINEST = 100  # speeds are read as fractions with denominators up to this: 0.95 is 19/20


def draw_speed(config: AugmentConfig) -> float:
    """One of the speeds, all equally likely; where there is no choice, nothing is drawn."""
    if len(config.speeds) == 1:
        return config.speeds[0]
    return config.speeds[int(torch.randint(len(config.speeds), ()))]


def change_speed(batch: Batch, speed: float) -> Batch:
    """The batch as it sounds when played at a speed: at 0.9 slower, lower, and 1/0.9 as long.

    Its video is played as much slower or faster, with frames between its frames.
    """
    ratio = Fraction(speed).limit_denominator(FINEST)
    old, new = ratio.numerator, ratio.denominator  # at 0.9 nine samples become ten
    if old == new:
        return batch
    weights, before = _weights(old, new)
    padded = F.pad(batch.waves, (before, len(weights) + old))
    # no convolution: on a GPU that would round samples to 11 bits (TF32)
    played = padded.unfold(1, len(weights), old) @ weights.to(padded)  # [B,N/old,new]
    longest = -(-batch.waves.shape[1] * new // old)
    lengths = -(-batch.wave_lengths * new // old)
    waves = played.flatten(1)[:, :longest]
    played_back = replace(batch, waves=waves, wave_lengths=lengths, speed=speed)
    if batch.video is None:
        return played_back
    video = _stretched(batch.video, batch.video_lengths, old, new)
    return replace(played_back, video=video, video_lengths=-(-batch.video_lengths * new // old))


def _stretched(video: Tensor, lengths: Tensor, old: int, new: int) -> Tensor:
    """[B,T,...] with `new` frames for every `old`, each linear between its neighbours in time."""
    count = -(-video.shape[1] * new // old)
    times = torch.arange(count, device=video.device) * old  # in new-ths of an old frame
    rows, last = torch.arange(len(video), device=video.device)[:, None], (lengths - 1)[:, None]
    before, after = (
        video[rows, place.minimum(last).clamp_min(0)].float()
        for place in (times // new, times // new + 1)
    )
    share = (times % new / new).view(1, -1, *[1] * (video.dim() - 2))
    return torch.lerp(before, after, share)


@lru_cache(maxsize=8)
def _weights(old: int, new: int) -> tuple[Tensor, int]:
    """[taps,new]: each new sample's weights, all on one grid of old samples; those before it."""
    kernel, reach = resampling_kernel(old, new)
    weights = torch.zeros(kernel.shape[1] + old, new)
    for phase, taps in enumerate(kernel):
        begin = phase * old // new
        weights[begin : begin + len(taps), phase] = torch.from_numpy(taps)
    return weights, reach


@dataclass(frozen=True)
class Masks:
    """What is hidden of a batch of features; zero is their mean."""

    frames: Tensor  # [B,T] bool
    bands: Tensor  # [B,M] bool

    def on(self, mel: Tensor) -> Tensor:
        """Features [B,T,M] without the hidden frames and bands."""
        return mel.masked_fill(self.frames[:, :, None] | self.bands[:, None], 0)

    def over_time(self, features: Tensor) -> Tensor:
        """Features [B,T,any] without the hidden frames."""
        return features.masked_fill(self.frames[:, :, None], 0)


class SpecAugment:
    """Draws masks for batches of features; each utterance gets its own (Park et al. 2019)."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, mel: Tensor, lengths: Tensor) -> Masks:
        """Masks for features [B,T,M] of `lengths` [B] frames.

        Time masks are shares of the utterance, drawn one after the other until the next one would
        bring them over time_total.
        """
        config, count = self.config, len(mel)
        widths = config.time_width * self._uniform(count, config.time_masks, mel)  # [B,K]
        widths = widths.where(widths.cumsum(1) <= config.time_total, 0.0)
        starts = self._uniform(count, config.time_masks, mel) * (1 - widths)
        frames = _spans(starts, widths, lengths[:, None], mel.shape[1])
        share = config.frequency_width / BANDS
        widths = share * self._uniform(count, config.frequency_masks, mel)
        starts = self._uniform(count, config.frequency_masks, mel) * (1 - widths)
        bands = torch.full_like(lengths[:, None], mel.shape[2])
        return Masks(frames, _spans(starts, widths, bands, mel.shape[2]))

    @staticmethod
    def _uniform(count: int, masks: int, like: Tensor) -> Tensor:
        return torch.rand(count, masks, device=like.device)


def _spans(starts: Tensor, widths: Tensor, scale: Tensor, size: int) -> Tensor:
    """[B,size], true inside any of the spans [B,K] that are given as shares of `scale` [B,1].

    Both ends are rounded down, so spans of together p * scale cover at most that, and one place.
    """
    begins = (starts * scale).floor()[:, :, None]
    ends = begins + (widths * scale).floor()[:, :, None]
    places = torch.arange(size, device=starts.device)
    return ((begins <= places) & (places < ends)).any(1)
