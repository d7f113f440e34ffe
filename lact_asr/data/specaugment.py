"""SpecAugment: frames and bands of the features hidden in training, batched, on their own device.

It draws from torch's global generators, which the loop seeds with (seed, step, rank) before each
step: what is drawn is a function of those three, and a resumed run repeats it. Nothing is warped in
time, so the frames of two views, or of a teacher and its student, stay aligned.

torchaudio 2.11's mask_along_axis_iid knows no lengths: ten masks of 5 % of the padded batch hide up
to 40 % of an utterance of 4 s beside one of 10 s (here at most time_total, 15 %), and it goes mask
by mask: 13.4 ms a minute for ten and two, here 1.0 (16 utterances, one CPU thread).

Legend: B utterances, T frames, M mel bands, K masks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lact_asr.config.augment import AugmentConfig

BANDS = 80  # of the spectrum in which the settings give the width of a frequency mask


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
