"""Transcribed speech as what a model learns from: read ahead, changed in speed, masked, decoded."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from lact_asr.config.model import SAMPLE_RATE
from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import Plan, Position, epoch_plan
from lact_asr.data.dataset import Reader, usable, whole_corpus
from lact_asr.data.loader import Stream, default_workers
from lact_asr.data.manifest import Utterance
from lact_asr.data.specaugment import SpecAugment
from lact_asr.data.speed import change_speed, draw_speed
from lact_asr.distributed.processes import World
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.material import Material, Measure, Terms, Worst
from lact_asr.training.memory_probe import worst
from lact_asr.training.objective import SpeechObjective
from lact_asr.training.validation import Dev, comparison_key, validate
from lact_asr.utils.errors import DataError

TERMS = Terms("utterances", "s", "batch_seconds", "audio_seconds_per_second", "s of audio/s")
HOUR = 3600  # seconds


class Speech(Material):
    """Utterances to learn from and to measure on."""

    terms = TERMS
    nothing_learned = comparison_key(np.inf, np.inf)

    def __init__(
        self,
        objective: SpeechObjective,
        train: list[Utterance],
        dev: list[Utterance],
        vocabulary: Vocabulary,
        config: TrainingConfig,
        world: World,
        device: torch.device,
    ) -> None:
        """DataError where more than half cannot be trained on, or nothing can be measured."""
        self.model, self.vocabulary, self.config = objective.model, vocabulary, config
        self.world, self.device = world, device
        self.workers = default_workers(device) if config.workers is None else config.workers
        self.views = objective.views
        self.corpus, self.left_out = usable(
            train,
            vocabulary,
            self.model.output_lengths,
            config,
            self.views,
            objective.video_shape,
        )
        measured = whole_corpus(dev, vocabulary, self.model.video_shape)
        if not len(measured.labels.flat):
            raise DataError(f"none of the {len(dev)} dev utterances has a text to compare with")
        self.dev = Dev.of(measured, config, world, self.workers)
        hours = self.corpus.durations.sum() / 3600
        self.summary = f"{len(self.corpus)} utterances ({hours:.2f} h), validating on {len(dev)}"
        self.budget = config.batch_seconds or config.batch_utterances or 1
        if config.batch_utterances:
            self.terms = replace(TERMS, budget="batch_utterances")
        self.tokens_per_amount = self.views * self.model.output_lengths(HOUR * SAMPLE_RATE) / HOUR
        self.max_unreadable = config.max_unreadable

    def fingerprint(self) -> int:
        """A number that changes when utterances come, go or change length."""
        return self.corpus.fingerprint()

    def feed(self, start: Position) -> Stream:
        """The batches of this rank from a place on."""
        return Stream(self.corpus, self.config, self.world, self.workers, start, self.views)

    def batches_per_epoch(self) -> int:
        """Micro-batches that every rank takes; another epoch may have one more or less."""
        return len(self._first_epoch()[0])

    def prepared(self, batch: Batch) -> Batch:
        """The batch on the device at a speed drawn for it, with masks to be drawn for it."""
        return self._masked(change_speed(batch.to(self.device), draw_speed(self.config.augment)))

    def _first_epoch(self) -> Plan:
        budget, ranks = self.config.budget(self.views), self.world.world_size
        return epoch_plan(self.corpus.durations, budget, self.config.seed, 0, ranks)

    def worst(self) -> Iterator[Worst]:
        """The worst batches of the first epoch, at the slowest speed."""
        durations, config = self.corpus.durations, self.config
        plan = self._first_epoch()
        reader, slowest = Reader(self.corpus, spare=True), min(config.augment.speeds)
        for indices in worst(durations, [batch for rank in plan for batch in rank]):
            batch = self._masked(change_speed(reader[indices.tolist()].to(self.device), slowest))
            yield Worst(len(indices), float(durations[indices].max()), batch)

    def measure(self) -> Measure:
        """Loss, WER and CER on every dev utterance."""
        found = validate(
            self.model,
            self.dev,
            self.vocabulary,
            self.config,
            self.world,
            self.device,
        )
        wer, cer = found.scores.wer, found.scores.cer
        return Measure(
            found.loss,
            comparison_key(cer if self.vocabulary.form.spaces == "drop" else wer, found.loss),
            {"wer": wer, "cer": cer},
            f"Valid loss {found.loss:.4f} | WER {wer:.2%} | CER {cer:.2%}",
            found.samples,
            found.unreadable,
            found.fast,
            found.signs,
        )

    def _masked(self, batch: Batch) -> Batch:
        config = self.config.augment
        return replace(batch, augment=SpecAugment(config)) if config.hides else batch
