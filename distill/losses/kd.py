"""What a student learns from the teacher's distributions: the KD loss of a configuration.

Frame by frame, at the teacher's peaks only, or from its greedy transcript; the teacher may be known
by its likeliest symbols alone.

Shapes: B batch, S student frames, T teacher frames, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.losses.functions import TopK
from distill.losses.spikes import shown_frames, take_frames
from distill.losses.time_grid import fit
from distill.losses.vocabularies import with_teacher_transcripts
from lact_asr.data.batch import Batch
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.interface import CTCOutput
from lact_asr.text.vocabulary import Vocabulary


@dataclass
class Recalled(CTCOutput):
    """What was kept of a teacher's output."""

    kept: TopK | None = None  # at the temperature asked for, where not every symbol was kept


def repeat_output(said: CTCOutput, times: int) -> CTCOutput:
    """What was said of a batch, so many times over."""
    if times == 1:
        return said
    again: Callable[[Tensor], Tensor] = lambda x: torch.cat([x] * times)
    maybe: Callable[[Tensor | None], Tensor | None] = lambda x: None if x is None else again(x)
    more = replace(
        said,
        log_probs=again(said.log_probs),
        lengths=again(said.lengths),
        hidden=[again(each) for each in said.hidden],
        attention=maybe(said.attention),
        modality_weights=maybe(said.modality_weights),
        modalities=maybe(said.modalities),
    )
    if isinstance(more, Recalled) and more.kept:
        more.kept = TopK(*map(again, more.kept))
    return more


class Outputs:
    """The KD loss between two outputs."""

    def __init__(
        self,
        config: DistillConfig,
        vocabulary: Vocabulary,
        written: Vocabulary,
        *,
        ratio: float,
        rate: float,
    ) -> None:
        """`written` is what the teacher's symbols are; `rate` in student frames per second,
        `ratio` of the teacher's to it.
        """
        self.config, self.vocabulary, self.written = config, vocabulary, written
        self.ratio, self.reach = ratio, round(config.blank_radius / 1000 * rate)

    def __call__(
        self,
        student: CTCOutput,
        teacher: CTCOutput,
        mask: Tensor,
        batch: Batch,
        labels_per_frame: Tensor,
    ) -> Tensor:
        """The sum over a batch: per frame (`frames`, brought to labels) or per label token."""
        if self.config.kd == "sequence":
            heard = with_teacher_transcripts(teacher, batch, self.written, self.vocabulary)
            return ctc_losses(student.log_probs, student.lengths, heard).sum()
        teacher = self._on_student_frames(teacher, mask)
        if self.config.kd == "guided":
            return losses.masked_sum(losses.guided(student.log_probs, teacher.log_probs), mask)
        mask = losses.select_frames(teacher.log_probs, mask, self.config.blank_policy, self.reach)
        divergence = self._divergence(student.log_probs, teacher)
        return labels_per_frame * losses.masked_sum(divergence, mask)

    def _on_student_frames(self, teacher: CTCOutput, mask: Tensor) -> CTCOutput:
        """What the teacher says, a frame for each of the student's [B,S], of which some count."""
        size = mask.shape[1]
        shown = None
        if self.ratio != 1:
            covered = mask.sum(1)
            shown = shown_frames(teacher.log_probs, teacher.lengths, covered, size, self.ratio)

        def onto(x: Tensor) -> Tensor:
            return fit(x, size) if shown is None else take_frames(x, shown)

        said = replace(teacher, log_probs=onto(teacher.log_probs))
        if isinstance(said, Recalled) and said.kept:
            said.kept = losses.TopK(*map(onto, said.kept))
        return said

    def _divergence(self, student: Tensor, said: CTCOutput) -> Tensor:
        """[B,S,V] and what the teacher says on the same frames to [B,S]."""
        config, teacher = self.config, said.log_probs
        if config.target == "outputs" and isinstance(said, Recalled) and said.kept:
            kept = losses.TopK(*(part[..., : config.top_k] for part in said.kept))
            return losses.top_k_kd(student, kept, config.temperature)
        if config.blank_policy == "drop_class":
            student, teacher = losses.drop_blank(student), losses.drop_blank(teacher)
        if config.top_k is None:
            still = config.target != "original"
            return losses.frame_kd(student, teacher, config.temperature, still)
        kept = losses.top_k(teacher, config.top_k, config.temperature)
        return losses.top_k_kd(student, kept, config.temperature)
