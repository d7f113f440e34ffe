"""The convolutional baseline: 20 layers, 15.7 M parameters, no attention.

What the teacher is compared with, and a student that shares nothing with it. Two strided
convolutions bring 100 feature frames a second to 25; the others are residual, with the norm before
the convolution, so that depth does not scale the gradient.

Shapes: B batch, M mel bands, D channels, T feature frames, T' = ceil(T / 4), V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config.models import BaselineConfig
from distill.models.masked_layers import MaskedNorm, silence, strided_lengths
from lact_asr.data.specaugment import SpecAugment
from lact_asr.model.features import LogMel
from lact_asr.model.interface import CTCModel, CTCOutput


class Residual(nn.Module):
    """x + dropout(conv(relu(norm(x)))); a stride keeps every second x."""

    def __init__(self, width: int, kernel: int, stride: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.norm = MaskedNorm(width, norm)
        self.conv = nn.Conv1d(width, width, kernel, stride, kernel // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B,D,T] and [B], zero past the lengths, to the same at the stride."""
        stride = self.conv.stride[0]
        change = self.conv(silence(F.relu(self.norm(x, lengths)), lengths))
        lengths = strided_lengths(lengths, stride)
        return silence(x[:, :, ::stride] + self.dropout(change), lengths), lengths


class Baseline(CTCModel):
    """Log-mel frames through masked convolutions to CTC log-probabilities."""

    family = "baseline"
    config: BaselineConfig

    def __init__(self, config: BaselineConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        width, kernel = config.hidden, config.kernel
        self.mel = LogMel(config.mels)
        self.stem = nn.Conv1d(config.mels, width, kernel, 2, kernel // 2)
        self.layers = nn.ModuleList(
            Residual(width, kernel, 2 if index == 0 else 1, config.norm, config.dropout)
            for index in range(config.layers - 2)
        )
        self.norm = MaskedNorm(width, config.norm)
        self.head = nn.Linear(width, vocabulary_size)
        self.blocks = nn.ModuleList()  # its layers hand lengths on: sharding never learned to
        nn.init.normal_(self.head.weight, std=width**-0.5)  # 0.01 learns 2x slower
        nn.init.zeros_(self.head.bias)

    def forward(
        self, waves: Tensor, wave_lengths: Tensor, augment: SpecAugment | None = None
    ) -> CTCOutput:
        """Waves [B,N] float32 at 16 kHz and their lengths [B] in samples."""
        mel, lengths = self.mel(waves, wave_lengths)  # [B,T,M]
        if augment:
            mel = augment(mel, lengths).on(mel)
        x = self.stem(mel.transpose(1, 2))
        lengths = strided_lengths(lengths, 2)
        x, hidden = silence(x, lengths), []
        for layer in self.layers:
            x, lengths = layer(x, lengths)
            hidden.append(x.transpose(1, 2))  # [B,T',D]
        return CTCOutput(self.read_out(hidden[-1], lengths), lengths, hidden)

    def read_out(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B,T',V] from states [B,T',D] of any layer."""
        x = F.relu(self.norm(states.transpose(1, 2), lengths)).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.float()).log_softmax(-1)
