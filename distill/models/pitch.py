"""Pitch and cepstra of a wave: what a spectrogram clip shows least clearly, as a stream of its own.

Pitch follows Boersma 1993: the autocorrelation of a windowed frame divided by the window's own, at
its highest between 60 and 400 Hz. It is evaluated at 256 candidate pitches, 0.7 % apart, as cosines
of the power spectrum: at whole lags only, a true peak between two of them reads lower than one of
its multiples, and 240 Hz came out as 80. Frames are those of `lact_asr.model.features.LogMel`.

Shapes: B batch, N samples, T frames of 10 ms, F bins, K candidate pitches.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lact_asr.config.model import HOP, SAMPLE_RATE
from lact_asr.model.features import WINDOW, standardize
from lact_asr.model.masks import length_mask

DOWN = 4  # samples averaged into one: 4 kHz
RATE = SAMPLE_RATE // DOWN
FRAME = 200  # samples at 4 kHz: 50 ms, three periods of 60 Hz
FFT = 512  # room for a frame and the longest lag
LOWEST, HIGHEST, CANDIDATES = 60.0, 400.0, 256  # Hz, Hz
OCTAVE_COST = 0.02  # per octave below the highest: half the true pitch correlates as well as itself
PITCH = 3  # features: voicing, log pitch, its change


class PitchAndCepstra(nn.Module):
    """Waves and their log-mels to cepstra (MFCC), voicing, log pitch and its change per frame."""

    log_pitches: Tensor  # (K,)
    cost: Tensor  # (K,)
    cosines: Tensor  # [F,1+K]
    window: Tensor  # (FRAME,)
    own: Tensor  # (K,)
    cepstral: Tensor  # (mels, cepstra)

    def __init__(self, mels: int, cepstra: int) -> None:
        super().__init__()
        log_pitches = torch.linspace(math.log(HIGHEST), math.log(LOWEST), CANDIDATES)
        octaves = (log_pitches[0] - log_pitches) / math.log(2)
        cosines = lag_cosines(RATE / log_pitches.exp())
        window = torch.hann_window(FRAME)
        own = power(window) @ cosines
        constants = {
            "log_pitches": log_pitches,
            "cost": OCTAVE_COST * octaves,
            "cosines": cosines,
            "window": window,
            "own": own[1:] / own[0],
            "cepstral": cosine_transform(mels, cepstra),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def forward(self, waves: Tensor, lengths: Tensor, mel: Tensor) -> Tensor:
        """Waves [B,N], lengths [B] in samples, mel [B,T,mels] to [B,T,cepstra+3]."""
        mask = length_mask(-(-lengths // HOP), mel.shape[1])
        with torch.autocast(waves.device.type, enabled=False):
            voicing, log_pitch = self.pitch(waves.float(), lengths, mel.shape[1])
            log_pitch = standardize(log_pitch[..., None], mask & (voicing > 0.5))[..., 0]
            around = F.pad(log_pitch, (1, 1))  # zero past the length, in a batch and alone
            change = around[:, 2:] - around[:, :-2]
            pitch = torch.stack([voicing, log_pitch, change], dim=-1)
            return standardize(torch.cat([mel.float() @ self.cepstral, pitch], dim=-1), mask)

    def pitch(self, waves: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Voicing 0..1 and the log of the pitch in Hz, (B, frames) each."""
        waves = waves.masked_fill(~length_mask(lengths, waves.shape[1]), 0.0)
        before = (FRAME * DOWN - WINDOW) // 2  # a frame's middle is that of the log-mel frame
        after = max(0, (frames - 1) * HOP + FRAME * DOWN - before - waves.shape[1])
        slow = F.avg_pool1d(F.pad(waves, (before, after))[:, None], DOWN)[:, 0]
        pieces = slow.unfold(1, FRAME, HOP // DOWN)[:, :frames]  # (B, T, FRAME)
        pieces = (pieces - pieces.mean(-1, keepdim=True)) * self.window
        correlation = power(pieces) @ self.cosines  # [B,T,1+K]
        share = correlation[..., 1:] / (correlation[..., :1] + 1e-6) / self.own
        best = (share - self.cost).argmax(-1, keepdim=True)
        return share.gather(-1, best)[..., 0].clamp(0, 1), self.log_pitches[best[..., 0]]


def power(x: Tensor) -> Tensor:
    """Power spectrum over the last axis, (..., F)."""
    spectrum = torch.fft.rfft(x, FFT)
    return spectrum.real.square() + spectrum.imag.square()


def lag_cosines(lags: Tensor) -> Tensor:
    """[F,1+K]: times a power spectrum, they give its autocorrelation at 0 and at `lags`."""
    bins = torch.arange(FFT // 2 + 1)
    lags = torch.cat([torch.zeros(1), lags])
    twice = torch.where((bins == 0) | (bins == FFT // 2), 1.0, 2.0)  # for negative frequencies
    return torch.cos(2 * math.pi / FFT * bins[:, None] * lags) * twice[:, None] / FFT


def cosine_transform(bands: int, count: int) -> Tensor:
    """The orthonormal DCT-II (bands, count) that turns log-mels into cepstra.

    torchaudio 2.11's create_dct is the same within 6e-7: other digits for checkpoints there are.
    """
    angles = (torch.arange(bands)[:, None] + 0.5) * torch.arange(count) * math.pi / bands
    basis = torch.cos(angles) * math.sqrt(2 / bands)
    basis[:, 0] /= math.sqrt(2)
    return basis
