"""The one training loop of the project: `fit`.

It takes an objective (a model and its loss), utterances and settings, and leaves checkpoints. It
can be killed at any moment and called again with the same arguments: it goes on from the newest
complete checkpoint, on one process bit for bit as if nothing had happened. For that everything
random is a function of (seed, step, rank): no generator needs saving, and nothing that draws from
one between two steps can disturb it.

A pass of the loop is: stop if asked, validate if due, save if due, end if done, take a step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import Position
from lact_asr.data.dataset import usable, whole_corpus
from lact_asr.data.loader import Stream, default_workers
from lact_asr.data.manifest import Utterance
from lact_asr.data.specaugment import SpecAugment
from lact_asr.data.speed import change_speed, draw_speed
from lact_asr.distributed import fsdp, processes
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint, early_stopping, guard, memory_probe, optim, train_step
from lact_asr.training.averaging import Average, mean
from lact_asr.training.logger import Journal
from lact_asr.training.loss import Outcome
from lact_asr.training.objective import SpeechObjective
from lact_asr.training.origin import changes
from lact_asr.training.resume import State, judged_anew, resume, step_seed, trainer_state
from lact_asr.training.retreat import retreat
from lact_asr.training.validation import standing, validate
from lact_asr.utils.errors import DataError, TrainingFailed
from lact_asr.utils.files import read_json
from lact_asr.utils.locks import unrivalled


@dataclass(frozen=True)
class FitResult:
    """What a call of `fit` came to."""

    finished: bool  # false: asked to stop, saved, and can be resumed
    step: int
    checkpoint: Path  # the best one by WER on the dev utterances; the newest if none was validated
    wer: float  # of the best checkpoint, as a fraction; inf before the first validation
    loss: float  # validation loss of the best checkpoint, nats per label token
    steps_skipped: int  # steps dropped: a loss or gradient was not finite, or far too large


def fit(
    objective: SpeechObjective,
    train: list[Utterance],
    dev: list[Utterance],
    vocabulary: Vocabulary,
    config: TrainingConfig,
    directory: Path,
    *,
    report: Callable[[Mapping[str, Any]], None],
    event: Callable[..., None],
    should_stop: Callable[[], bool],
    fence: Callable[[], None] = unrivalled,
    device: torch.device | None = None,
) -> FitResult:
    """Train for max_steps, or until the dev WER stops falling, or until asked to stop.

    Every rank calls this with the same arguments. Checkpoints go to directory/checkpoints. Raises
    TrainingFailed ("divergence", "out_of_memory") and DataError (nothing to train or validate on,
    more than half of the utterances unusable, more than max_unreadable unreadable files). `fence`
    is called before a checkpoint is written, and raises where a newer process has taken over.
    """
    world = processes.start()
    device = device or world.device()
    journal = Journal(report, event, config.max_steps, loud=world.main)
    run = _Run(objective, vocabulary, config, directory / "checkpoints", world, journal, device)
    run.fence = fence
    try:
        run.prepare(train, dev)
        return run.loop(should_stop)
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            "out_of_memory",
            f"memory ran out at step {run.state.step + 1} with batches of {config.batch_seconds:g} "
            f"padded seconds; halve batch_seconds and double accumulate ({error})",
        ) from error


class _Run:
    """One call of fit."""

    def __init__(
        self,
        objective: SpeechObjective,
        vocabulary: Vocabulary,
        config: TrainingConfig,
        folder: Path,
        world: processes.World,
        journal: Journal,
        device: torch.device,
    ) -> None:
        self.objective, self.vocabulary, self.config = objective, vocabulary, config
        self.folder, self.world, self.journal, self.device = folder, world, journal, device
        self.workers = default_workers(device) if config.workers is None else config.workers
        self.state, self.saved = State(), 0
        self.fence: Callable[[], None] = unrivalled

    def prepare(self, train: list[Utterance], dev: list[Utterance]) -> None:
        """Data, optimiser, and what an earlier process left."""
        objective, config = self.objective, self.config
        views, seen = objective.views, objective.video_shape
        self.corpus, dropped = usable(
            train, self.vocabulary, objective.model.output_lengths, config, views, seen
        )
        self.journal.start(len(train), self.corpus.durations.sum(), len(dev), dropped)
        self.dev = whole_corpus(dev, self.vocabulary, objective.model.video_shape)
        if not len(self.dev.labels.flat):
            raise DataError(f"none of the {len(dev)} dev utterances has a text to compare with")
        objective.trainable.to(self.device)
        if config.sharded and self.world.world_size > 1:
            model = objective.model
            fsdp.shard(model, objective.trainable, model.blocks, model.attends)
        self.optimizer = optim.build(objective, config.optim)
        self.average = Average(objective.model, config.average.decay)
        start = self._resume()
        self.stream = Stream(self.corpus, config, self.world, self.workers, start, views)
        self.module = self.world.wrap(train_step.Called(objective), objective.unused_parameters)
        if memory_probe.wanted(config, self.device):
            memory_probe.probe(
                self.module,
                objective,
                self.optimizer,
                self.corpus,
                config,
                self.world,
                self.device,
                self.journal,
            )

    def _resume(self) -> Position:
        """Go on from the newest checkpoint, if there is one; rank 0 says which."""
        if self.world.main:
            checkpoint.recover(self.folder)
        path = self.world.gather(checkpoint.latest(self.folder))[0]
        if path is None:
            return Position()
        fingerprint = self.corpus.fingerprint()
        self.state, position = resume(
            path, self.objective, self.vocabulary, self.optimizer, fingerprint, self.average
        )
        self.saved = self.state.step
        before = read_json(path / "config.json")["training"]
        changed = changes(before, self.config.model_dump(mode="json"))
        if changed:  # dropped steps say nothing of other settings; a requeued job keeps its own
            self.state = judged_anew(self.state)
        facts = {"epoch": position.epoch, "checkpoint": path.name, "changed": changed}
        self.journal.event("resumed", step=self.saved, **facts)
        self.journal.say(
            "\n  ".join([f"Resumed from {path.name}, epoch {position.epoch}", *changed])
        )
        return position

    def loop(self, should_stop: Callable[[], bool]) -> FitResult:
        """Train from where the state is."""
        state, config, stop = self.state, self.config, False
        self.objective.trainable.train()
        self.journal.begin(state.step)
        while not stop:
            ended = state.step >= config.max_steps
            due = state.step > 0 and state.step % config.valid_every == 0
            if (due or ended) and state.validated != state.step:
                self._validate(self.average)
            ended |= early_stopping.ended(
                config.stopping, state.step / config.max_steps, state.stale
            )
            if ended and config.average.last and not state.averaged:
                self._validate_mean()
            if ended or self._due():
                self._save()
            if ended:
                return self._result(finished=True)
            stop = self._step(should_stop())
        self._save()
        return self._result(finished=False)

    def _due(self) -> bool:
        """Whether to save: not while steps are dropped, with the weights that may be the reason."""
        every = self.config.checkpoint_every
        return not self.state.in_a_row and self.state.step // every > self.saved // every

    def _step(self, stop: bool) -> bool:
        """One step; whether some rank was asked to stop."""
        state, config = self.state, self.config
        torch.manual_seed(step_seed(config.seed, state.step, self.world.rank))
        factor = optim.rate_factor(config.optim, state.step, config.max_steps)
        optim.set_rate(self.optimizer, factor)
        batches = [self._augmented(self.stream.take()) for _ in range(config.accumulate)]
        self.objective.begin_step(batches, self.world.all_sum)
        progress = state.step / config.max_steps
        highest = guard.limit(config.guard, state.typical_norm, state.in_a_row)
        setting = train_step.Setting(config, self.world, self.device, highest)
        outcome = train_step.take(
            self.module, self.optimizer, batches, progress, setting, stop, state.unreadable
        )
        state.step, state.averaged = state.step + 1, False
        if outcome.taken:
            self.average.follow(state.step)
        self.journal.took(outcome)
        self.objective.end_step(state.step, outcome, self.journal)
        guard.note_unreadable(state, config, self.journal, outcome.unreadable)
        try:
            guard.note_step(state, config, self.journal, outcome, self.objective.trainable)
        except TrainingFailed as error:
            where = self.world.gather(self._retreat(outcome) if self.world.main else "")[0]
            raise TrainingFailed(error.failure_class, f"{error}. {where}") from None
        if state.step % config.log_every == 0 or state.step == 1:
            rate = self.optimizer.param_groups[0]["lr"]  # what is in force, not what should be
            self.journal.progress(state.step, self.stream.position.epoch, rate, state.skipped)
        return outcome.stop

    def _retreat(self, outcome: Outcome) -> str:
        """Rank 0 puts checkpoints of no use aside; where the next start goes on."""
        aside, where = retreat(self.folder, self.state, outcome)
        for path in aside:
            self.journal.event("put_aside", checkpoint=path.name, now=checkpoint.DIVERGED)
        return where

    def _augmented(self, batch: Batch) -> Batch:
        """The batch at a speed drawn for it, with masks to be drawn for it."""
        config = self.config.augment
        batch = change_speed(batch.to(self.device), draw_speed(config))
        return replace(batch, augment=SpecAugment(config)) if config.hides else batch

    def _validate_mean(self) -> None:
        """Measure the mean of the last checkpoints and the present weights."""
        steps_back = self.config.average.last - 1
        model, present = self.objective.model, f"{self.state.step:08d}"
        before = [path for path in checkpoint.by_step(self.folder) if path.name < present]
        states = [checkpoint.load(path / checkpoint.WEIGHTS) for path in before[::-1][:steps_back]]
        weights = mean([*states, fsdp.whole(model.state_dict())])
        self.journal.say(f"The mean of the weights of {len(states) + 1} checkpoints:")
        self.state.averaged = True
        self._validate(Average(model, values=weights))

    def _validate(self, average: Average) -> None:
        """Measure the model with other weights, and keep these if they are the best."""
        with average.applied():
            self._measure()

    def _measure(self) -> None:
        """Measure the model, and keep it if it is the best."""
        state = self.state
        validation = validate(
            self.objective.model,
            self.dev,
            self.vocabulary,
            self.config,
            self.world,
            self.device,
            self.workers,
        )
        self.objective.trainable.train()
        wer, loss = validation.scores.wer, validation.loss
        best = standing(wer, loss) < standing(state.best_wer, state.best_loss)
        state.validated = state.step
        state.mark, state.stale = early_stopping.watch(
            self.config.stopping, state.step, standing(wer, loss), state.mark, state.stale
        )
        self.journal.validated(state.step, validation, best)
        unheard = [each for each in validation.unreadable if each[0] not in state.unreadable]
        guard.note_unreadable(state, self.config, self.journal, dict(unheard))
        if best:
            state.best_wer, state.best_loss = wer, loss
            facts = {"step": state.step, "wer": wer, "cer": validation.scores.cer, "loss": loss}
            self._write(checkpoint.BEST, facts, {})

    def _save(self) -> None:
        """Save all that is needed to go on, once per step."""
        state = self.state
        if self.saved == state.step:
            return
        rate = self.config.optim.learning_rate
        guard.refuse_broken(state.step, rate, self.objective.trainable)
        self.saved = state.step
        trainer = trainer_state(
            state,
            self.objective,
            self.optimizer,
            self.stream.position,
            self.corpus.fingerprint(),
            self.average,
        )
        facts = {"step": state.step, "epoch": self.stream.position.epoch}
        facts["loss"] = state.typical_loss
        self._write(f"{state.step:08d}", facts, {"trainer.pt": trainer})
        self.journal.event("checkpoint", step=state.step)
        if self.world.main:
            checkpoint.prune(
                self.folder, max(self.config.keep_checkpoints, self.config.average.last)
            )

    def _write(self, name: str, facts: dict[str, Any], more: dict[str, Any]) -> None:
        """A checkpoint, by rank 0, of what all ranks have."""
        model, main = self.objective.model, self.world.main
        tensors = fsdp.whole({checkpoint.WEIGHTS: model.state_dict(), **more}, keep=main)
        if main:
            described = checkpoint.describe(model, self.vocabulary, self.config)
            files = {**tensors, "config.json": described, checkpoint.STATE: facts}
            checkpoint.save(self.folder, name, files, self.fence)

    def _result(self, finished: bool) -> FitResult:
        """The result on every rank, once rank 0 has written what it names."""
        self.world.gather(None)
        state, best = self.state, self.folder / checkpoint.BEST
        path = best if checkpoint.complete(best) else self.folder / f"{state.step:08d}"
        return FitResult(finished, state.step, path, state.best_wer, state.best_loss, state.skipped)
