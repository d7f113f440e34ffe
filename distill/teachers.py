"""Where a teacher's outputs come from: the model itself, run on every batch, or its cache on disk.

The objective sees the same thing either way, a `CTCOutput` on the teacher's own frames. A live
teacher knows everything; a cache (`distill.cache.teacher`) holds what it was made to hold, and says
so before the first step.

Shapes: B batch, T teacher frames, V vocabulary.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from distill.config.distillation import DistillConfig
from distill.losses.time_grid import frame_rate
from lact_asr.config.model import SAMPLE_RATE
from lact_asr.data.batch import Batch
from lact_asr.model.forward import forward_batch
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.text.vocabulary import Vocabulary


class Source(Protocol):
    """A teacher that can be asked about batches."""

    vocabulary: Vocabulary
    frame_rate: float  # output frames per second
    widths: tuple[int, ...]  # of the hidden states it gives, the last ones last
    modalities: tuple[str, ...]  # whose states it gives
    video_shape: tuple[int, ...] | None  # the shape of a frame of the video it looks at, if it does
    attends: bool  # whether it can say what it attends to

    def check(self, config: DistillConfig) -> None:
        """DataError if it cannot teach in this way."""
        ...

    def lengths(self, batch: Batch) -> Tensor:
        """[B] frames of each utterance, without running a model; on the CPU."""
        ...

    def __call__(self, batch: Batch, temperature: float) -> CTCOutput:
        """What the teacher says, without a gradient; it hears no SpecAugment."""
        ...


class Live:
    """The teacher itself, frozen and in evaluation mode, on the device of the batches."""

    def __init__(self, teacher: CTCModel, vocabulary: Vocabulary) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.frame_rate = frame_rate(teacher)
        self.widths = widths(teacher)
        self.modalities = teacher.modalities
        self.video_shape = teacher.video_shape
        self.attends = teacher.attends
        self.asked: dict[str, bool] = {}

    def check(self, config: DistillConfig) -> None:
        """A live teacher teaches in every way that it knows."""
        self.asked = {"attention": True} if config.attention_weight and self.attends else {}

    def lengths(self, batch: Batch) -> Tensor:
        """By the model's own arithmetic."""
        return self.teacher.output_lengths(batch.wave_lengths)

    @torch.no_grad()
    def __call__(self, batch: Batch, temperature: float) -> CTCOutput:
        """The model's output; the temperature is for those who must know it before."""
        if next(self.teacher.parameters()).device != batch.waves.device:
            self.teacher.to(batch.waves.device)
        return forward_batch(self.teacher, replace(batch, augment=None), **self.asked)


def widths(model: CTCModel) -> tuple[int, ...]:
    """Widths of a model's hidden states, seen on a tenth of a second of silence."""
    training, device = model.training, next(model.parameters()).device
    samples = SAMPLE_RATE // 10
    with torch.no_grad():
        output = model.eval()(
            torch.zeros(1, samples, device=device), torch.tensor([samples], device=device)
        )
    model.train(training)
    return tuple(states.shape[-1] for states in output.hidden)
