"""Distillation as an objective of `lact_asr.training.fit`: any family teaches any family.

What the teacher says comes from a source (`distill.sources`): the model itself, or its cache.

    total = (1 - alpha) CTC + kd_weight(progress) KD + curriculum(progress) feature_weight feature

CTC counts per label token, KD and feature loss per valid frame, over all micro-batches and
processes of a step. The loop divides by one weight, the labels, so what is summed over frames is
brought to it by labels / frames of the whole step, which `begin_step` learns before the first
forward pass: lengths are arithmetic, no model is run for them.

Shapes: B batch, S student frames, T teacher frames, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill import losses, schedules
from distill.alignment import average, average_log_probs, fit, frame_rate, taught
from distill.config import DistillConfig
from distill.projector import LogitProjector
from distill.sources import Recalled, Source, last_width
from distill.vocabularies import check_vocabularies, transcribed
from lact_asr.data import Batch
from lact_asr.features import valid
from lact_asr.model import CTCOutput
from lact_asr.objective import Loss, ctc_losses, listen
from lact_asr.text import Vocabulary


class DistillObjective:
    """A student with parameters to learn, and a frozen teacher beside it."""

    def __init__(
        self,
        student: nn.Module,
        source: Source,
        config: DistillConfig,
        *,
        vocabulary: Vocabulary,
    ) -> None:
        """DataError if student and teacher write differently and these settings compare symbols,
        or if the source does not hold what these settings ask for.
        """
        check_vocabularies(vocabulary, source.vocabulary, config)
        self.config, self.model, self.source = config, student, source
        self.vocabulary, self.projected = vocabulary, config.target != "outputs"
        self.ratio = source.frame_rate / frame_rate(student)
        source.check(config, self.ratio)
        self.reach = round(config.blank_radius / 1000 * frame_rate(student))
        self.trainable = nn.ModuleDict({"student": student})
        if config.feature_weight:
            self.trainable["projector"] = nn.Linear(last_width(student), source.width)
        if self.projected:
            self.trainable["logit_projector"] = LogitProjector(
                source.width, len(vocabulary), normalise=config.target == "projector"
            )
        self.labels_per_frame: Tensor | None = None

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The student at the given rate, the projector faster: it starts from nothing."""
        factors = {"student": 1.0}
        faster = self.config.projector_rate
        return [
            {"params": list(module.parameters()), "lr": learning_rate * factors.get(name, faster)}
            for name, module in self.trainable.items()
        ]

    def begin_step(self, batches: Sequence[Batch], all_sum: Callable[[Tensor], Tensor]) -> None:
        """Count labels and frames of a step: this rank's micro-batches, summed by `all_sum`."""
        labels = sum(int(batch.target_lengths.sum()) for batch in batches)
        frames = sum(int(self._frames(batch).sum()) for batch in batches)
        device = next(self.model.parameters()).device
        sums = all_sum(torch.tensor([labels, frames], dtype=torch.float64, device=device))
        self.labels_per_frame = (sums[0] / sums[1]).float()

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of one micro-batch, with every component raw and weighted in its parts."""
        if self.labels_per_frame is None:
            raise RuntimeError("begin_step must announce the micro-batches of a step first")
        student = listen(self.model, batch)  # the teacher hears what the student must guess
        teacher = self.source(batch, self.config.temperature)
        with torch.autocast(batch.waves.device.type, enabled=False):
            ctc = ctc_losses(student.log_probs, student.lengths, batch).sum()
            teacher, own = self._translated(teacher, batch)
            raw = {"ctc": ctc, **self._taught(student, teacher, batch)}
        weights = self.weights(progress)
        weighted = {name: weights[name] * value for name, value in raw.items()} | own
        total = torch.stack(list(weighted.values())).sum()
        shown = {**raw, **own, **{f"{name}_weighted": value for name, value in weighted.items()}}
        parts = {name: value.detach() for name, value in shown.items()}
        return Loss(total, batch.target_lengths.sum(), parts)

    def _translated(self, teacher: CTCOutput, batch: Batch) -> tuple[CTCOutput, dict[str, Tensor]]:
        """What the teacher says in the student's symbols; and the projector's loss, if it has one.

        The projector learns from the texts; KD does not move it, unless it is the notes'.
        """
        if not self.projected:
            return teacher, {}
        said = self.trainable["logit_projector"](teacher.hidden[-1])
        if self.config.target == "projector_notes":
            return replace(teacher, log_probs=said), {}
        own = ctc_losses(said, teacher.lengths, batch).sum()
        return replace(teacher, log_probs=said.detach()), {"projector": own}

    def weights(self, progress: float) -> dict[str, float]:
        """What each component is multiplied by."""
        config = self.config
        gate = schedules.curriculum(config.curriculum, progress)["feature"]
        return {
            "ctc": 1 - config.alpha,
            "kd": schedules.kd_weight(progress, config),
            "feature": config.feature_weight * gate,
        }

    def _frames(self, batch: Batch) -> Tensor:
        """Student frames of each utterance that the teacher speaks for, (B,)."""
        lengths = self.model.output_lengths(batch.wave_lengths)
        return taught(lengths, self.source.lengths(batch), self.ratio)

    def _taught(self, student: CTCOutput, teacher: CTCOutput, batch: Batch) -> dict[str, Tensor]:
        """KD and feature loss, scaled so that dividing by labels gives what they are defined as."""
        mask = valid(self._frames(batch), student.log_probs.shape[1])
        parts = {"kd": self._kd(student, teacher, mask, batch)}
        if self.config.feature_weight:
            parts["feature"] = self.labels_per_frame * self._feature(student, teacher, mask)
        return parts

    def _kd(self, student: CTCOutput, teacher: CTCOutput, mask: Tensor, batch: Batch) -> Tensor:
        """Per frame (`frames`), or per label token (`guided`, `sequence`)."""
        if self.config.kd == "sequence":
            written = self.vocabulary if self.projected else self.source.vocabulary
            heard = transcribed(teacher, batch, written, self.vocabulary)
            return ctc_losses(student.log_probs, student.lengths, heard).sum()
        target = average_log_probs(
            teacher.log_probs, teacher.lengths, student.log_probs.shape[1], self.ratio
        )
        if self.config.kd == "guided":
            return losses.masked_sum(losses.guided(student.log_probs, target), mask)
        mask = losses.select_frames(target, mask, self.config.blank_policy, self.reach)
        kept = teacher.kept if isinstance(teacher, Recalled) and not self.projected else None
        divergence = self._divergence(student.log_probs, target, kept)
        return self.labels_per_frame * losses.masked_sum(divergence, mask)

    def _divergence(self, student: Tensor, teacher: Tensor, kept: losses.TopK | None) -> Tensor:
        """(B, S, V) twice to (B, S); `kept` if that is all that is known of the teacher."""
        config = self.config
        if kept:
            kept = losses.TopK(*(fit(part, student.shape[1])[..., : config.top_k] for part in kept))
            return losses.top_k_kd(student, kept, config.temperature)
        if config.blank_policy == "drop_class":
            student, teacher = losses.drop_blank(student), losses.drop_blank(teacher)
        if config.top_k is None:
            still = config.target != "projector_notes"
            return losses.frame_kd(student, teacher, config.temperature, still)
        kept = losses.top_k(teacher, config.top_k, config.temperature)
        return losses.top_k_kd(student, kept, config.temperature)

    def _feature(self, student: CTCOutput, teacher: CTCOutput, mask: Tensor) -> Tensor:
        """The student's last hidden states, projected, against the teacher's."""
        states = teacher.hidden[-1].float()
        target = average(states, teacher.lengths, mask.shape[1], self.ratio)
        projected = self.trainable["projector"](student.hidden[-1].float())
        return losses.masked_sum(losses.FEATURE[self.config.feature](projected, target), mask)
