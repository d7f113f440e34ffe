"""Speed perturbation: a batch played slower or faster, on the waves' own device.

It draws from torch's global generators, which the loop seeds with (seed, step, rank) before each
step: what is drawn is a function of those three, and a resumed run repeats it. torchaudio 2.11's
Speed gives the same samples within 2e-7 in 2.4 ms a minute on a CPU (here 4.2, one thread), by a
convolution, which a GPU computes with factors of 11 bits (TF32) as PyTorch is set by default.

Legend: B utterances, N samples, T frames.
"""

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lact_asr.config.augment import AugmentConfig
from lact_asr.data.audio import resampling_kernel
from lact_asr.data.batch import Batch
from lact_asr.distributed.device import sent

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
    weights = sent(weights, padded.device).to(padded.dtype)
    played = padded.unfold(1, len(weights), old) @ weights  # [B,N/old,new]
    longest = -(-batch.waves.shape[1] * new // old)
    lengths = -(-batch.wave_lengths * new // old)
    waves = played.flatten(1)[:, :longest]
    played_back = replace(batch, waves=waves, wave_lengths=lengths, speed=speed)
    if batch.video is None or batch.video_lengths is None:
        return played_back
    video = _stretch_video(batch.video, batch.video_lengths, old, new)
    return replace(played_back, video=video, video_lengths=-(-batch.video_lengths * new // old))


def _stretch_video(video: Tensor, lengths: Tensor, old: int, new: int) -> Tensor:
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
