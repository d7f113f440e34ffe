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

from lact_asr import checkpoint, guard, optim, parallel, steps, stopping
from lact_asr.augment import SpecAugment, change_speed, draw_speed
from lact_asr.batching import Position
from lact_asr.config import TrainingConfig
from lact_asr.data import Batch, usable, whole_corpus
from lact_asr.errors import DataError, TrainingFailed
from lact_asr.health import non_finite
from lact_asr.journal import Journal
from lact_asr.loading import Stream, default_workers
from lact_asr.manifest import Utterance
from lact_asr.objective import CTCObjective, Loss, Objective
from lact_asr.resume import State, resume, step_seed, trainer_state
from lact_asr.text import Vocabulary
from lact_asr.validation import validate

__all__ = ["CTCObjective", "FitResult", "Loss", "Objective", "fit"]

BREAKER = 20  # steps dropped in a row before a run is given up as diverged


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
    objective: Objective,
    train: list[Utterance],
    dev: list[Utterance],
    vocabulary: Vocabulary,
    config: TrainingConfig,
    directory: Path,
    *,
    report: Callable[[Mapping[str, Any]], None],
    event: Callable[..., None],
    should_stop: Callable[[], bool],
    device: torch.device | None = None,
) -> FitResult:
    """Train for max_steps, or until the dev WER stops falling, or until asked to stop.

    Every rank calls this with the same arguments. Checkpoints go to directory/checkpoints. Raises
    TrainingFailed ("divergence", "out_of_memory") and DataError (nothing to train or validate on,
    more than half of the utterances unusable, more than max_unreadable unreadable files).
    """
    world = parallel.start()
    device = device or world.device()
    journal = Journal(report, event, config.max_steps, loud=world.main)
    run = _Run(objective, vocabulary, config, directory / "checkpoints", world, journal, device)
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
        objective: Objective,
        vocabulary: Vocabulary,
        config: TrainingConfig,
        folder: Path,
        world: parallel.World,
        journal: Journal,
        device: torch.device,
    ) -> None:
        self.objective, self.vocabulary, self.config = objective, vocabulary, config
        self.folder, self.world, self.journal, self.device = folder, world, journal, device
        self.workers = default_workers(device) if config.workers is None else config.workers
        self.state, self.saved = State(), 0

    def prepare(self, train: list[Utterance], dev: list[Utterance]) -> None:
        """Data, optimiser, and what an earlier process left."""
        objective, config = self.objective, self.config
        views = getattr(objective, "views", 1)
        self.corpus, dropped = usable(
            train, self.vocabulary, objective.model.output_lengths, config, views
        )
        self.journal.start(len(train), self.corpus.durations.sum(), len(dev), dropped)
        self.dev = whole_corpus(dev, self.vocabulary)
        if not len(self.dev.labels.flat):
            raise DataError(f"none of the {len(dev)} dev utterances has a text to compare with")
        objective.trainable.to(self.device)
        self.optimizer = optim.build(objective, config.optim)
        start = self._resume()
        self.stream = Stream(self.corpus, config, self.world, self.workers, start, views)
        self.module = self.world.wrap(
            steps.Called(objective), getattr(objective, "unused_parameters", False)
        )

    def _resume(self) -> Position:
        """Go on from the newest checkpoint, if there is one; rank 0 says which."""
        if self.world.main:
            checkpoint.recover(self.folder)
        path = self.world.gather(checkpoint.latest(self.folder))[0]
        if path is None:
            return Position()
        fingerprint = self.corpus.fingerprint()
        self.state, position = resume(path, self.objective, self.optimizer, fingerprint)
        self.saved = self.state.step
        self.journal.event("resumed", step=self.saved, epoch=position.epoch, checkpoint=path.name)
        self.journal.say(f"Resumed from {path.name}, epoch {position.epoch}")
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
                self._validate()
            ended |= stopping.ended(config.stopping, state.step / config.max_steps, state.stale)
            if ended or (state.step > 0 and state.step % config.checkpoint_every == 0):
                self._save()
            if ended:
                return self._result(finished=True)
            stop = self._step(should_stop())
        self._save()
        return self._result(finished=False)

    def _step(self, stop: bool) -> bool:
        """One step; whether some rank was asked to stop."""
        state, config = self.state, self.config
        torch.manual_seed(step_seed(config.seed, state.step, self.world.rank))
        factor = optim.rate_factor(config.optim, state.step, config.max_steps)
        optim.set_rate(self.optimizer, factor)
        batches = [self._augmented(self.stream.take()) for _ in range(config.accumulate)]
        if hasattr(self.objective, "begin_step"):
            self.objective.begin_step(batches, self.world.all_sum)
        progress = state.step / config.max_steps
        highest = guard.limit(config.guard, state.typical_norm, state.in_a_row)
        setting = steps.Setting(config, self.world, self.device, highest)
        outcome = steps.take(
            self.module, self.optimizer, batches, progress, setting, stop, state.unreadable
        )
        state.step += 1
        self.journal.took(outcome)
        self._note_unreadable(outcome.unreadable)
        self._note_dropped(outcome)
        if state.step % config.log_every == 0 or state.step == 1:
            rate = config.optim.learning_rate * factor
            self.journal.progress(state.step, self.stream.position.epoch, rate, state.skipped)
        return outcome.stop

    def _augmented(self, batch: Batch) -> Batch:
        """The batch at a speed drawn for it, with masks to be drawn for it."""
        config = self.config.augment
        batch = change_speed(batch.to(self.device), draw_speed(config))
        return replace(batch, augment=SpecAugment(config)) if config.hides else batch

    def _note_unreadable(self, news: dict[str, str]) -> None:
        """Name files met for the first time; give up when there are too many."""
        if not news:
            return
        known = self.state.unreadable
        known |= news
        self.journal.unreadable(self.state.step, news)
        if len(known) > self.config.max_unreadable:
            named = "\n".join(f"{key}: {why}" for key, why in list(known.items())[:5])
            raise DataError(
                f"{len(known)} audio files are unreadable, max_unreadable is "
                f"{self.config.max_unreadable}; the first are\n{named}"
            )

    def _note_dropped(self, outcome: steps.Outcome) -> None:
        """Count a step that was not taken; give up when they do not end."""
        state = self.state
        state.typical_norm = guard.remembered(
            state.typical_norm, outcome.grad_norm, outcome.highest
        )
        if outcome.taken:
            state.in_a_row = 0
            return
        state.skipped += 1
        state.in_a_row += 1
        state.dropped = guard.recent([*state.dropped, state.step], state.step)
        self.journal.dropped(state.step, outcome)
        if state.in_a_row >= BREAKER or len(state.dropped) > guard.SHARE * guard.WINDOW:
            self._give_up(outcome)

    def _give_up(self, outcome: steps.Outcome) -> None:
        """TrainingFailed that says what dropped the steps and what to change."""
        state, config = self.state, self.config
        often = f"{state.in_a_row} steps in a row"
        if state.in_a_row < BREAKER:
            often = f"{len(state.dropped)} of {min(state.step, guard.WINDOW)} steps"
        if outcome.finite:
            why = (
                f"a gradient norm above {outcome.highest:g} while {state.typical_norm:.3g} is usual"
                ". A fixed guard.skip_above may lie below what a sound model needs: write "
                "guard: {skip_ratio: 10} instead, or lower the learning rate"
            )
        else:
            broken = ", ".join(non_finite(self.objective.trainable)[:3]) or "none"
            why = (
                f"a loss or gradient that is not finite (weights that are not: {broken}). Lower "
                "the learning rate"
            )
        raise TrainingFailed(
            "divergence",
            f"{often}, up to step {state.step}, had {why}, now {config.optim.learning_rate:g}, or "
            f"look at {', '.join(outcome.suspects)}",
        )

    def _validate(self) -> None:
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
        best = (wer, loss) < (state.best_wer, state.best_loss)  # at 100 % WER the loss decides
        state.validated = state.step
        state.mark, state.stale = stopping.watch(
            self.config.stopping, state.step, (wer, loss), state.mark, state.stale
        )
        self.journal.validated(state.step, validation, best)
        unheard = [each for each in validation.unreadable if each[0] not in state.unreadable]
        self._note_unreadable(dict(unheard))
        if best:
            state.best_wer, state.best_loss = wer, loss
            facts = {"step": state.step, "wer": wer, "cer": validation.scores.cer, "loss": loss}
            self._write(checkpoint.BEST, facts, {})

    def _save(self) -> None:
        """Save all that is needed to go on, once per step."""
        state = self.state
        if self.saved == state.step:
            return
        self.saved = state.step
        trainer = trainer_state(
            state, self.objective, self.optimizer, self.stream.position, self.corpus.fingerprint()
        )
        facts = {"step": state.step, "epoch": self.stream.position.epoch}
        self._write(f"{state.step:08d}", facts, {"trainer.pt": trainer})
        self.journal.event("checkpoint", step=state.step)
        if self.world.main:
            checkpoint.prune(self.folder, self.config.keep_checkpoints)

    def _write(self, name: str, facts: dict[str, Any], more: dict[str, Any]) -> None:
        """A checkpoint, by rank 0."""
        if self.world.main:
            model = self.objective.model
            described = checkpoint.describe(model, self.vocabulary, self.config)
            files = {"model.pt": model.state_dict(), "config.json": described, **more}
            checkpoint.save(self.folder, name, {**files, checkpoint.STATE: facts})

    def _result(self, finished: bool) -> FitResult:
        """The result on every rank, once rank 0 has written what it names."""
        self.world.gather(None)
        state, best = self.state, self.folder / checkpoint.BEST
        path = best if checkpoint.complete(best) else self.folder / f"{state.step:08d}"
        return FitResult(finished, state.step, path, state.best_wer, state.best_loss, state.skipped)
