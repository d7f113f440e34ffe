"""Distillation as an objective of `lact_asr.training.trainer.fit`: any family teaches any family.

What the teacher says comes from a source (`distill.teachers`): the model itself, or its cache.

    total = (1 - alpha) task + kd_weight(progress) KD + sum of curriculum(progress) weight hint

The task is CTC with what `ctc:` adds to it. A hint whose weight is 0 is not computed, and what a
student that knows nothing would cost, only in steps that are logged.

Hints are losses on hidden states (`distill.losses.hints`); what is taught can be balanced against
CTC (`distill.losses.balancing`). CTC counts per label token, KD and hints per valid frame, over all
micro-batches and processes of a step. The loop divides by one weight, the labels, so what is summed
over frames is brought to it by labels / frames of the whole step, which `begin_step` learns before
the first forward pass: lengths are arithmetic, no model is run for them.

Shapes: B batch, S student frames, T teacher frames, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.losses import layer_map, schedules
from distill.losses.balancing import SCALES_RATE, Balancer
from distill.losses.hints import Hints
from distill.losses.kd import Outputs, repeat_output
from distill.losses.looks import LOOK, Looks, balance_line, curriculum_line
from distill.losses.projector import LogitProjector
from distill.losses.router import StudentAwareRouter, evenness
from distill.losses.time_grid import average, covered_frames, frame_rate
from distill.losses.vocabularies import check_vocabularies
from distill.teachers import Source, widths
from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.distributed.device import made, sent
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import forward_batch
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.model.masks import length_mask
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.health import Finding
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import LEAST, Loss, Outcome, Part, relative
from lact_asr.training.objective import CTCObjective, SpeechObjective, repeat_batch
from lact_asr.utils.errors import DataError


class DistillObjective(SpeechObjective):
    """A student with parameters to learn, and a frozen teacher beside it."""

    trainable: nn.ModuleDict

    def __init__(
        self,
        student: CTCModel,
        source: Source,
        config: DistillConfig,
        *,
        vocabulary: Vocabulary,
        sample: Batch | None = None,
        ctc: CTCConfig | None = None,
        log_every: int = 1,
    ) -> None:
        """DataError if student and teacher write differently and these settings compare symbols,
        or if the source does not hold what these settings ask for.

        `sample` is what a layer map by likeness is made from, `ctc` what is added to CTC; every
        `log_every` steps it is measured what losses are expected to be.
        """
        self.task = CTCObjective(student, ctc, vocabulary)
        self.views = self.task.views
        self.video_shape = student.video_shape or source.video_shape
        check_vocabularies(vocabulary, source.vocabulary, config)
        self.config, self.model, self.source = config, student, source
        self.vocabulary, self.projected = vocabulary, config.target != "outputs"
        self.ratio = source.frame_rate / frame_rate(student)
        source.check(config)
        self.asked = self._required_outputs()
        self.outputs = Outputs(
            config,
            vocabulary,
            vocabulary if self.projected else source.vocabulary,
            ratio=self.ratio,
            rate=frame_rate(student),
        )
        self.hints = Hints(
            config,
            widths(student),
            source.widths,
            source.modalities,
            self._pairs(sample) if config.layerwise_weight else [],
            ratio=self.ratio,
            rate=frame_rate(student),
        )
        self.balancer = Balancer(["kd", *self.hints.names], config.balance)
        self.trainable = nn.ModuleDict({"student": student, **self.hints.modules})
        if self.task.spelling:
            self.trainable["spelling"] = self.task.spelling
        if config.balance != "static":
            self.trainable["balancer"] = self.balancer
        if self.projected:
            self.trainable["logit_projector"] = LogitProjector(
                source.widths[-1], len(vocabulary), normalize=config.target == "projector"
            )
        self.progress, self.looks = 0.0, Looks(log_every)
        self._labels_per_frame: Tensor | None = None

    def _required_outputs(self) -> dict[str, bool]:
        """What the student gives beside its output; DataError if one of the two cannot."""
        if not self.config.attention_weight:
            return {}
        if not (self.source.attends and self.model.attends):
            raise DataError(
                "attention_weight compares what student and teacher attend to, and one of them "
                "cannot say (the baseline has no attention, a cache does not keep it): write "
                "attention_weight: 0, or family: lact and no cache"
            )
        if self.ratio != 1:
            raise DataError(
                f"attention_weight wants the same frames on both sides, and the teacher has "
                f"{self.ratio:g} for one of the student's: change the student's subsampling, or "
                "write attention_weight: 0"
            )
        return {"attention": True}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The student at the given rate, maps faster: they start from nothing."""
        factors = {"student": 1.0, "spelling": 1.0, "balancer": SCALES_RATE}
        groups = []
        for name, module in self.trainable.items():
            parts = [(module, factors.get(name, self.config.projector_rate))]
            if isinstance(module, StudentAwareRouter):
                parts = [(module.gate, self.config.router.rate), (module.maps, parts[0][1])]
            for part, factor in parts:
                parameters = list(part.parameters())
                if parameters:
                    groups.append({"params": parameters, "lr": learning_rate * factor})
        return groups

    def begin_step(self, batches: Sequence[Batch], all_sum: Callable[[Tensor], Tensor]) -> None:
        """Count labels and frames of a step: this rank's micro-batches, summed by `all_sum`."""
        labels = sum(int(batch.target_lengths.sum()) for batch in batches)
        frames = sum(int(self._frames(batch).sum()) for batch in batches)
        device = next(self.model.parameters()).device
        sums = all_sum(made([labels, frames], device))
        self._labels_per_frame = (sums[0] / sums[1]).float()

    @property
    def labels_per_frame(self) -> Tensor:
        """Of the whole step, (); RuntimeError before `begin_step` has counted them."""
        if self._labels_per_frame is None:
            raise RuntimeError("begin_step must announce the micro-batches of a step first")
        return self._labels_per_frame

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of one micro-batch, with every component raw and weighted in its parts."""
        self.progress, weights = progress, self.weights(progress)
        active = {name for name, weight in weights.items() if weight}
        heard = repeat_batch(batch, self.views)
        # the teacher hears what is hidden here, and hears it once
        student = forward_batch(self.model, heard, **self.asked)
        teacher = self.source(batch, self.config.temperature)
        with torch.autocast(batch.waves.device.type, enabled=False):
            task = self.task.judge(student, heard)
            teacher, own = self._in_student_symbols(teacher, batch)
            teacher = repeat_output(teacher, self.views)
            mask = self._mask(heard, student)
            hints, use = self.hints(student, teacher, mask, lambda: task.total, active)
            taught = {"kd": self._kd(student, teacher, mask, heard)}
            taught |= self._sum_over_frames(hints, mask)
            expected = {}
            if self.looks.measured:
                unlearned = self.hints.unlearned(hints, student, teacher, mask)
                expected = self._of_a_uniform_student(student, teacher, mask, heard)
                expected |= self._sum_over_frames(unlearned, mask)
        weighted = self.balancer(taught, weights, task.weight)
        weighted["ctc"] = weights["ctc"] * task.total
        if "router" in taught:  # what it pays for its choices is its own affair
            weighted["router"] = taught["router"]
        weighted |= own
        idle = [0 * parameter.sum() for parameter in self.hints.idle(active)]  # in every total
        total = torch.stack([*weighted.values(), *idle]).sum()
        weighted = {f"{name}_weighted": value for name, value in weighted.items()}
        alone = {name: part.value for name, part in task.parts.items()} or {"ctc": task.total}
        parts = {**alone, **taught, **own, **weighted, **self._sum_over_frames(use, mask)}
        shown = {n: Part(value.detach(), expected.get(n)) for n, value in parts.items()}
        return Loss(total, task.weight, shown, task.counts)

    def _in_student_symbols(
        self, teacher: CTCOutput, batch: Batch
    ) -> tuple[CTCOutput, dict[str, Tensor]]:
        """What the teacher says in the student's symbols; and the projector's loss, if it has one.

        The projector learns from the texts; KD does not move it, unless it is the original
        recipe's.
        """
        if not self.projected:
            return teacher, {}
        said = self.trainable["logit_projector"](teacher.hidden[-1])
        if self.config.target == "original":
            return replace(teacher, log_probs=said), {}
        own = ctc_losses(said, self.source.lengths(batch), batch).sum()
        return replace(teacher, log_probs=said.detach()), {"projector": own}

    def weights(self, progress: float) -> dict[str, float]:
        """What each component is multiplied by before it is balanced."""
        config = self.config
        gate = schedules.curriculum(config.curriculum, progress)["contrastive"]
        return {
            "ctc": 1 - config.alpha,
            **schedules.weights(config, progress),
            "contrastive": config.contrastive_weight * gate,
        }

    def end_step(self, step: int, outcome: Outcome, logger: TrainingLogger) -> None:
        """Remember what a step came to, and say now and then how losses and router are weighed."""
        told = self.looks.after(step)
        if not outcome.taken:
            return
        parts = {name: part.value for name, part in outcome.parts.items()}
        self.balancer.observe(parts["ctc"], parts)
        if told:
            for line in self._lines(step, outcome):
                logger.say(line)
            logger.judge(step, {"teacher_unlearned": self._teacher_unlearned(outcome)})
        names = self.hints.experts
        if not names or f"first_{names[0]}" not in parts:  # no router, or not yet
            return
        router = cast(StudentAwareRouter, self.trainable["router"])
        firsts, shares = ([parts[f"{kind}_{n}"] for n in names] for kind in ("first", "share"))
        router.observe(firsts)
        if step % LOOK == 0:
            wrong = router.warn_of_collapse(firsts, shares)
            used = dict(zip(names, shares, strict=True))
            collapse = Finding(wrong, used) if wrong else None
            logger.judge(step, {"router_collapse": collapse})

    def _teacher_unlearned(self, outcome: Outcome) -> Finding | None:
        """Whether there is nothing to learn from the teacher."""
        expected = outcome.parts["kd"].expected
        if expected is None or expected >= LEAST:
            return None
        return Finding(
            f"the teacher finds all symbols about equally likely (kd {expected:.2g} to a student "
            "that knows nothing): train it first, or name another checkpoint as teacher",
            {"kd_expected": expected},
        )

    def _lines(self, step: int, outcome: Outcome) -> list[str]:
        """The original lines, for those who look for them."""
        weights, names = self.weights(self.progress), ["kd", *self.hints.names]
        lines = [curriculum_line(step, self.progress, weights, names)]
        if self.config.balance != "static":
            lines.append(balance_line(self.balancer.factors().tolist(), names))
        if self.hints.experts and f"share_{self.hints.experts[0]}" in outcome.parts:
            shares = [outcome.parts[f"share_{name}"].value for name in self.hints.experts]
            shown = ", ".join(
                f"{n}={s:.3f}" for n, s in zip(self.hints.experts, shares, strict=True)
            )
            lines.append(f"[ROUTER] {shown}, evenness={evenness(shares):.3f}")
        against = relative(outcome.parts)
        shown = ", ".join(f"{name}={share:.3f}" for name, share in against.items())
        lines.append(f"[RELATIVE] to what nothing learned costs: {shown}")
        lines.append(f"[TOTAL] Loss: {outcome.loss:.4f}, Components: {1 + len(names)}")
        return lines

    def _pairs(self, sample: Batch | None) -> layer_map.Pairs:
        """The layer map; what it rests on is printed where it is by likeness."""
        here, there = len(widths(self.model)), len(self.source.widths)
        wanted = self.config.layer_map
        if wanted == "uniform":
            return layer_map.uniform(here, there)
        if wanted != "cka":
            return layer_map.check(wanted, here, there)
        if sample is None:
            raise ValueError("layer_map cka needs a sample batch to look at")
        likeness = self._likeness(sample)
        pairs = layer_map.best_monotone(likeness)
        print(layer_map.table(likeness, pairs), flush=True)
        return pairs

    @torch.no_grad()
    def _likeness(self, sample: Batch) -> Tensor:
        """[L_S,L_T] on the frames of the sample."""
        training = self.model.training
        student = forward_batch(self.model.eval(), sample)
        self.model.train(training)
        teacher = self.source(sample, self.config.temperature)
        mask = self._mask(sample, student)
        frames = mask.shape[1]
        onto: Callable[[Tensor], Tensor] = lambda x: average(
            x.float(), teacher.lengths, frames, self.ratio
        )
        return layer_map.similarities(student.hidden, [onto(x) for x in teacher.hidden], mask)

    def _frames(self, batch: Batch) -> Tensor:
        """Student frames of each utterance that the teacher speaks for, [B]; on the CPU."""
        lengths = self.model.output_lengths(batch.wave_lengths)
        return covered_frames(lengths, self.source.lengths(batch), self.ratio)

    def _mask(self, batch: Batch, student: CTCOutput) -> Tensor:
        """Those frames as a mask [B,S]."""
        said = student.log_probs
        return length_mask(sent(self._frames(batch), said.device), said.shape[1])

    def _kd(self, student: CTCOutput, teacher: CTCOutput, mask: Tensor, batch: Batch) -> Tensor:
        return self.outputs(student, teacher, mask, batch, self.labels_per_frame) / self.views

    @torch.no_grad()
    def _of_a_uniform_student(
        self, student: CTCOutput, teacher: CTCOutput, mask: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """What CTC and KD would be if all symbols were as likely: about where they begin."""
        even = torch.full_like(student.log_probs, -math.log(len(self.vocabulary)))
        uniform = replace(student, log_probs=even)
        lengths = self.model.output_lengths(batch.wave_lengths)
        ctc = ctc_losses(even, lengths, batch).sum() / self.views
        return {"ctc": ctc, "kd": self._kd(uniform, teacher, mask, batch)}

    def _sum_over_frames(self, shown: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Sums over frames, scaled so that dividing by labels gives what they are defined as."""
        return {
            name: self.labels_per_frame * losses.masked_sum(each, mask) / self.views
            for name, each in shown.items()
        }
