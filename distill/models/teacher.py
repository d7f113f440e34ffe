"""The teacher: an inflated Inception trunk over log-mel clips, and pitch, and perhaps video; CTC.

Everything meets on one grid of 25 frames a second (character CTC is infeasible at I3D's own 12.5).
A modality may be missing for an utterance or for all: its input is cleared, the fusion does not
look at it, and the other modalities are not disturbed.

Shapes: B batch, N samples, T feature frames (100 Hz), T' = ceil(T / 4), M modalities, D width,
V vocabulary.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config.models import TeacherConfig
from distill.models.attention import Block, rotary
from distill.models.fusion import ModalityFusion
from distill.models.i3d import Trunk
from distill.models.masked_layers import silence, strided_lengths
from distill.models.pitch import PITCH, PitchAndCepstra
from lact_asr.data.specaugment import SpecAugment
from lact_asr.model.features import LogMel
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.model.masks import length_mask


class ClipStem(nn.Module):
    """The trunk over clips of log-mel frames: [B,T,mels] at 100 Hz to [B,T',outputs]."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.frames, self.hop = config.clip_frames, config.clip_hop
        self.trunk = Trunk(
            1,
            config.trunk_width,
            4 // config.clip_hop,
            config.norm,
            config.trunk_blocks,
            config.hold_edges,
        )
        self.outputs = self.trunk.outputs

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Clip j shows frames around j * hop; frames past the length are zero, the mean, in it."""
        before = (self.frames - 1) // 2
        clips = -(-mel.shape[1] // self.hop)
        after = (clips - 1) * self.hop + self.frames - before - mel.shape[1]
        padded = F.pad(mel, (0, 0, before, max(after, 0)))
        pieces = padded.unfold(1, self.frames, self.hop)[:, None, :clips]  # (B, 1, T, mels, frames)
        return self.trunk(pieces, strided_lengths(lengths, self.hop))[0]


class PitchStem(nn.Module):
    """Two strided convolutions over pitch and cepstra: (B, T, features) to [B,T',D]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.outputs = width
        self.layers = nn.ModuleList(
            nn.Conv1d(narrow, wide, 5, 2, 2)
            for narrow, wide in ((inputs, width // 2), (width // 2, width))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in (width // 2, width))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Zero past the lengths before each convolution."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(silence(x.transpose(1, 2), lengths)).transpose(1, 2)
            x, lengths = F.gelu(norm(x)), strided_lengths(lengths, 2)
        return x


class Teacher(CTCModel):
    """Waves, and video where there is some, to CTC log-probabilities at 25 frames a second."""

    family = "teacher"
    attends = True
    config: TeacherConfig

    def __init__(self, config: TeacherConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.mels)
        self.pitch = PitchAndCepstra(config.mels, config.cepstra)
        self.video_shape = config.video_shape
        self.modalities = ("mel", "pitch", "video")[: 3 if self.video_shape else 2]
        self.clip_stem = ClipStem(config)
        self.pitch_stem = PitchStem(config.cepstra + PITCH, config.hidden)
        inputs = [self.clip_stem.outputs, self.pitch_stem.outputs]
        if config.video == "frames":
            self.video_trunk = Trunk(
                3, config.video_width, 1, config.norm, hold_edges=config.hold_edges
            )
            inputs.append(self.video_trunk.outputs)
        elif config.video == "features":  # the fusion's norm and linear map are all their stem
            inputs.append(config.video_features)
        self.fusion = ModalityFusion(
            inputs,
            config.hidden,
            config.heads,
            qk_norm=config.qk_norm,
            logit_cap=config.logit_cap,
            output_cap=config.output_cap,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            modality_dropout=config.modality_dropout,
        )
        self.blocks = nn.ModuleList(
            Block(config.hidden, config.heads, config.mlp, config.qk_norm, config.dropout)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, vocabulary_size)
        std = config.head_std or config.linear_std or config.hidden**-0.5
        self._start(config)
        nn.init.normal_(self.head.weight, std=std)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def _start(self, config: TeacherConfig) -> None:
        """The settings for how layers start; the maps into the fusion keep their own."""
        own = set(self.fusion.projections)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in own and config.linear_std:
                nn.init.normal_(module.weight, std=config.linear_std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv1d, nn.Conv3d)):
                module.weight.mul_(config.conv_scale)

    def forward(
        self,
        waves: Tensor,
        wave_lengths: Tensor,
        *,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
        present: Tensor | None = None,
        augment: SpecAugment | None = None,
        attention: bool = False,
    ) -> CTCOutput:
        """Waves [B,N] float32 at 16 kHz and their lengths [B] in samples.

        `video`, [B,T_v,3,H,W] in 0..255 or [B,T_v,D_v] features, shows 25 frames a second,
        each utterance its `video_lengths` [B]: 0 where it has none. `present` [B,M] bool, in the
        order mel, pitch, video, marks what may be used; whatever an absent modality holds, NaN
        even, has no effect.
        """
        lengths = self.output_lengths(wave_lengths)
        grid = self.output_lengths(waves.shape[1])
        if present is None:
            present = torch.ones(len(waves), len(self.fusion.norms), device=waves.device).bool()
        streams = self._audio(waves, wave_lengths, present, augment)
        there = [length_mask(lengths, grid) & present[:, index, None] for index in range(2)]
        if self.video_shape:
            stream, seen = self._video(video, video_lengths, present[:, 2], grid)
            streams.append(stream)
            there.append(seen & length_mask(lengths, grid))
        tokens, weights = self.fusion.attend(streams, torch.stack(there, dim=-1))
        output = self._transcribe((weights[..., None] * tokens).sum(2), lengths, attention)
        return replace(output, modality_weights=weights, modalities=tokens[:, :, :-1])

    def _audio(
        self,
        waves: Tensor,
        wave_lengths: Tensor,
        present: Tensor,
        augment: SpecAugment | None,
    ) -> list[Tensor]:
        heard = present[:, :2].any(1, keepdim=True)  # a stream not used is cleared in the fusion
        waves = waves.masked_fill(~heard, 0.0)
        mel, lengths = self.mel(waves, wave_lengths)
        pitch = self.pitch(waves, wave_lengths, mel)
        if augment:
            masks = augment(mel, lengths)
            mel, pitch = masks.on(mel), masks.over_time(pitch)
        return [self.clip_stem(mel, lengths), self.pitch_stem(pitch, lengths)]

    def _video(
        self, video: Tensor | None, lengths: Tensor | None, present: Tensor, grid: int
    ) -> tuple[Tensor, Tensor]:
        """The video stream [B,T',D_v] and where it is there [B,T']."""
        pictures = self.config.video == "frames"
        if video is None or lengths is None:  # one frame, not looked at, keeps all in the graph
            shape = (3, 32, 32) if pictures else (self.config.video_features,)
            video = self.head.weight.new_zeros(len(present), 1, *shape)
            lengths = torch.zeros_like(present, dtype=torch.int64)
        lengths = lengths.masked_fill(~present, 0)
        stream = video.float()
        if pictures:
            stream, _ = self.video_trunk(stream.transpose(1, 2) / 127.5 - 1, lengths)
        stream = F.pad(stream, (0, 0, 0, max(0, grid - stream.shape[1])))[:, :grid]
        return stream, length_mask(lengths, grid)

    def _transcribe(self, x: Tensor, lengths: Tensor, attention: bool) -> CTCOutput:
        seen = length_mask(lengths, x.shape[1])
        turn = rotary(x.shape[1], self.config.hidden // self.config.heads, x.device)
        hidden = [x]
        for block in self.blocks:
            hidden.append(block(hidden[-1], seen, turn))  # [B,T',D]
        last = cast(Block, self.blocks[-1])
        paid = last.log_attention(hidden[-2], seen, turn) if attention else None
        log_probs = self.read_out(hidden[-1], lengths)
        return CTCOutput(log_probs, lengths, hidden[1:], paid)

    def read_out(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B,T',V] from states [B,T',D] of any block."""
        with torch.autocast(states.device.type, enabled=False):
            return self.head(self.norm(states).float()).log_softmax(-1)
