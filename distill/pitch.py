"""Pitch and cepstra of a wave: what a spectrogram clip shows least clearly, as a stream of its own.

Pitch follows Boersma 1993: the autocorrelation of a windowed frame divided by the window's own, its
highest peak between 60 and 400 Hz. At 4 kHz, where one frame costs 20 us on a CPU; the peak is
placed between samples by a parabola. Frames are those of `lact_asr.features.LogMel`.

Shapes: B batch, N samples, T frames of 10 ms, K lags.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lact_asr.config import HOP, SAMPLE_RATE
from lact_asr.features import WINDOW, standardise, valid

DOWN = 4  # samples averaged into one: 4 kHz
RATE = SAMPLE_RATE // DOWN
FRAME = 200  # samples at 4 kHz: 50 ms, three periods of 60 Hz
FFT = 512  # room for a frame and the longest lag
LAGS = (RATE // 400, RATE // 60 + 1)  # samples at 4 kHz: 400 Hz to 60 Hz
OCTAVE_COST = 0.02  # per octave below 400 Hz: halves of the true pitch correlate as well as itself
PITCH = 3  # features: voicing, log pitch, its change


class PitchAndCepstra(nn.Module):
    """Waves and their log-mels to cepstra (MFCC), voicing, log pitch and its change per frame."""

    def __init__(self, mels: int, cepstra: int) -> None:
        super().__init__()
        window = torch.hann_window(FRAME)
        lags = torch.arange(*LAGS)
        self.register_buffer("window", window, persistent=False)
        own = autocorrelation(window)
        self.register_buffer("own", (own / own[0])[lags], persistent=False)
        self.register_buffer("cost", OCTAVE_COST * torch.log2(lags / lags[0]), persistent=False)
        self.register_buffer("cosines", cosine_transform(mels, cepstra), persistent=False)

    @torch.no_grad()
    def forward(self, waves: Tensor, lengths: Tensor, mel: Tensor) -> Tensor:
        """Waves (B, N), lengths (B,) in samples, mel (B, T, mels) to (B, T, cepstra + 3)."""
        frames = -(-lengths // HOP)
        mask = valid(frames, mel.shape[1])
        with torch.autocast(waves.device.type, enabled=False):
            voicing, log_pitch = self.pitch(waves.float(), lengths, mel.shape[1])
            log_pitch = standardise(log_pitch[..., None], mask & (voicing > 0.5))[..., 0]
            change = F.pad(log_pitch[:, 2:] - log_pitch[:, :-2], (1, 1))
            change = change.masked_fill(~valid(frames - 1, mel.shape[1]), 0.0)  # no next frame
            pitch = torch.stack([voicing, log_pitch, change], dim=-1)
            return standardise(torch.cat([mel.float() @ self.cosines, pitch], dim=-1), mask)

    def pitch(self, waves: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Voicing 0..1 and the log of the pitch in Hz, (B, frames) each."""
        waves = waves.masked_fill(~valid(lengths, waves.shape[1]), 0.0)
        before = (FRAME * DOWN - WINDOW) // 2  # a frame's middle is that of the log-mel frame
        after = max(0, (frames - 1) * HOP + FRAME * DOWN - before - waves.shape[1])
        slow = F.avg_pool1d(F.pad(waves, (before, after))[:, None], DOWN)[:, 0]
        pieces = slow.unfold(1, FRAME, HOP // DOWN)[:, :frames]  # (B, T, FRAME)
        pieces = (pieces - pieces.mean(-1, keepdim=True)) * self.window
        full = autocorrelation(pieces)
        ratio = full[..., LAGS[0] : LAGS[1]] / (full[..., :1] + 1e-6) / self.own  # (B, T, K)
        best = (ratio - self.cost)[..., 1:-1].argmax(-1, keepdim=True) + 1
        left, peak, right = (ratio.gather(-1, best + step) for step in (-1, 0, 1))
        bend = (left - 2 * peak + right).clamp_max(-1e-6)
        lag = best + LAGS[0] + (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
        return peak[..., 0].clamp(0, 1), torch.log(RATE / lag)[..., 0]


def autocorrelation(x: Tensor) -> Tensor:
    """Autocorrelation over the last axis, by lag."""
    spectrum = torch.fft.rfft(x, FFT)
    return torch.fft.irfft(spectrum.real.square() + spectrum.imag.square(), FFT)


def cosine_transform(bands: int, count: int) -> Tensor:
    """The orthonormal DCT-II (bands, count) that turns log-mels into cepstra."""
    angles = (torch.arange(bands)[:, None] + 0.5) * torch.arange(count) * math.pi / bands
    basis = torch.cos(angles) * math.sqrt(2 / bands)
    basis[:, 0] /= math.sqrt(2)
    return basis
