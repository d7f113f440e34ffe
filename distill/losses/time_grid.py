"""One time grid for two models: the teacher's hidden states averaged onto the student's frames.

Student frame s lasts from s * r to (s + 1) * r in teacher frames, r being the ratio of their rates;
it takes the mean of the teacher's frames in that window, by their overlap with it. At r = 2 that is
the mean of two frames, at r = 1/2 each teacher frame serves twice. Distributions of symbols are not
averaged: `distill.losses.spikes` says why.

Shapes: B batch, S student frames, T teacher frames, D width.
"""

import torch
from torch import Tensor

from lact_asr.config.model import SAMPLE_RATE
from lact_asr.model.interface import CTCModel
from lact_asr.model.masks import length_mask

HOUR = 3600  # seconds: rounding up to a frame does not show in a rate taken over this


def frame_rate(model: CTCModel) -> float:
    """Output frames per second of a model."""
    return model.output_lengths(HOUR * SAMPLE_RATE) / HOUR


def covered_frames(student_lengths: Tensor, teacher_lengths: Tensor, ratio: float) -> Tensor:
    """[B] student frames that start within the teacher's: those a teacher frame speaks for."""
    return torch.minimum(student_lengths, torch.ceil(teacher_lengths / ratio).long())


def overlaps(lengths: Tensor, frames: int, student_frames: int, ratio: float) -> Tensor:
    """[B,S,T] weights, rows summing to one over the teacher's valid frames (or to zero)."""
    start = torch.arange(student_frames, device=lengths.device)[:, None] * ratio
    teacher = torch.arange(frames, device=lengths.device)
    window = torch.minimum(start + ratio, teacher + 1) - torch.maximum(start, teacher)  # [S,T]
    weights = window.clamp_min(0) * length_mask(lengths, frames)[:, None]
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)


def average(x: Tensor, lengths: Tensor, student_frames: int, ratio: float) -> Tensor:
    """Teacher frames [B,T,D], `lengths` [B] of them valid, on the student's grid [B,S,D]."""
    if ratio == 1:
        return fit(x, student_frames)
    return overlaps(lengths, x.shape[1], student_frames, ratio) @ x


def fit(x: Tensor, frames: int) -> Tensor:
    """[B,T,D] cut, or filled up by its last frame, to `frames`."""
    missing = frames - x.shape[1]
    if missing <= 0:
        return x[:, :frames]
    return torch.cat([x, x[:, -1:].expand(-1, missing, -1)], dim=1)
