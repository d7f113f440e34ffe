"""What a student learns from the teacher's distributions: the KD loss of a configuration.

Frame by frame, at the teacher's peaks only, or from its greedy transcript; the teacher may be known
by its likeliest symbols alone.

Shapes: B batch, S student frames, T teacher frames, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.losses.functions import TopK
from distill.losses.time_grid import average_log_probs, fit
from distill.losses.vocabularies import with_teacher_transcripts
from lact_asr.data.batch import Batch
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.interface import CTCOutput
from lact_asr.text.vocabulary import Vocabulary


@dataclass
class Recalled(CTCOutput):
    """What was kept of a teacher's output."""

    kept: TopK | None = None  # at the temperature asked for, where not every symbol was kept


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
        target = average_log_probs(
            teacher.log_probs, teacher.lengths, student.log_probs.shape[1], self.ratio
        )
        if self.config.kd == "guided":
            return losses.masked_sum(losses.guided(student.log_probs, target), mask)
        mask = losses.select_frames(target, mask, self.config.blank_policy, self.reach)
        kept = None
        if isinstance(teacher, Recalled) and self.config.target == "outputs":
            kept = teacher.kept
        divergence = self._divergence(student.log_probs, target, kept)
        return labels_per_frame * losses.masked_sum(divergence, mask)

    def _divergence(self, student: Tensor, teacher: Tensor, kept: losses.TopK | None) -> Tensor:
        """[B,S,V] twice to [B,S]; `kept` if that is all that is known of the teacher."""
        config = self.config
        if kept:
            kept = losses.TopK(*(fit(part, student.shape[1])[..., : config.top_k] for part in kept))
            return losses.top_k_kd(student, kept, config.temperature)
        if config.blank_policy == "drop_class":
            student, teacher = losses.drop_blank(student), losses.drop_blank(teacher)
        if config.top_k is None:
            still = config.target != "original"
            return losses.frame_kd(student, teacher, config.temperature, still)
        kept = losses.top_k(teacher, config.top_k, config.temperature)
        return losses.top_k_kd(student, kept, config.temperature)
