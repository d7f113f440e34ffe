"""The one training loop of the project.

It takes an objective (a model and its loss), what to train on and measure with (speech: `fit`; any
`Material`: `learn`) and settings, and leaves checkpoints. It can be killed at any moment and called
again with the same arguments: it goes on from the newest complete checkpoint, on one process bit
for bit as if nothing had happened. For that everything random is a function of (seed, step, rank):
no generator needs saving, and nothing that draws from one between two steps can disturb it.

A pass of the loop is: stop if asked, validate if due, save if due, end if done, take a step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lact_asr.config.training import LoopConfig, TrainingConfig
from lact_asr.data.batch_plan import Position
from lact_asr.data.manifest import Utterance
from lact_asr.distributed import fsdp, processes
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint, early_stopping, guard, memory_probe, optim, train_step
from lact_asr.training.averaging import Average, mean
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Outcome
from lact_asr.training.material import Material
from lact_asr.training.objective import Objective, SpeechObjective
from lact_asr.training.origin import changes
from lact_asr.training.resume import State, judged_anew, resume, step_seed, trainer_state
from lact_asr.training.retreat import retreat
from lact_asr.training.speech import Speech
from lact_asr.utils.errors import Failed, Interrupted
from lact_asr.utils.files import read_json
from lact_asr.utils.locks import no_fence


@dataclass(frozen=True)
class Launcher:
    """Who has started the training: told what happens, and asked whether to go on."""

    report: Callable[[Mapping[str, Any]], None]  # metrics
    event: Callable[..., None]
    should_stop: Callable[[], bool]
    fence: Callable[[], None] = no_fence  # before a write: raises where a newer process has begun


@dataclass(frozen=True)
class FitResult:
    """What a training came to."""

    step: int
    checkpoint: Path  # the best one on the dev data; the newest if none was validated
    best: dict[str, float]  # loss and figures (`Measure`) of the best one; empty before the first
    steps_skipped: int  # steps dropped: a loss or gradient was not finite, or far too large

    @property
    def wer(self) -> float:
        """Of the best checkpoint of a recognizer, as a fraction; inf before the first."""
        return self.best.get("wer", math.inf)

    @property
    def loss(self) -> float:
        """Validation loss of the best checkpoint, nats per label token."""
        return self.best.get("loss", math.inf)


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
    fence: Callable[[], None] = no_fence,
    device: torch.device | None = None,
) -> FitResult:
    """Train on speech for max_steps, until the dev WER stops falling, or until asked to stop.

    Every rank calls this with the same arguments. Raises what `learn` does, and DataError: nothing
    to train or validate on, more than half of the utterances unusable, more than max_unreadable
    unreadable files.
    """
    world = processes.start()
    device = device or world.device()
    speech = Speech(objective, train, dev, vocabulary, config, world, device)
    launcher = Launcher(report, event, should_stop, fence)
    return learn(objective, speech, vocabulary, config, directory, launcher, world, device)


def learn(
    objective: Objective[Any, Any],
    material: Material,
    vocabulary: Vocabulary,
    config: LoopConfig,
    directory: Path,
    launcher: Launcher,
    world: processes.World,
    device: torch.device,
) -> FitResult:
    """Train on any material. Checkpoints go to directory/checkpoints.

    Raises Failed ("divergence", "out_of_memory"), and Misfit where there are checkpoints of
    something else.
    """
    folder, terms = directory / "checkpoints", material.terms
    run = _Run(objective, material, vocabulary, config, folder, launcher, world, device)
    try:
        run.prepare()
        return run.loop()
    except torch.OutOfMemoryError as error:
        raise Failed(
            "out_of_memory_gpu",
            f"memory ran out at step {run.state.step + 1} with {terms.budget} "
            f"{material.budget:g}; halve {terms.budget} and double accumulate ({error})",
        ) from error


class _Run:
    """One call of learn."""

    def __init__(
        self,
        objective: Objective[Any, Any],
        material: Material,
        vocabulary: Vocabulary,
        config: LoopConfig,
        folder: Path,
        launcher: Launcher,
        world: processes.World,
        device: torch.device,
    ) -> None:
        self.objective, self.material, self.vocabulary = objective, material, vocabulary
        self.config, self.folder, self.launcher = config, folder, launcher
        self.world, self.device = world, device
        self.logger = TrainingLogger(
            launcher.report, launcher.event, config.max_steps, material.terms, loud=world.main
        )
        self.state, self.saved = State(), 0

    def prepare(self) -> None:
        """Model, optimizer, what an earlier process left, and the batches from there on."""
        objective, config = self.objective, self.config
        self.logger.start(self.material)
        objective.trainable.to(self.device)
        if config.sharded and self.world.world_size > 1:
            model = objective.model
            fsdp.shard(model, objective.trainable, model.blocks, model.attends)
        self.optimizer = optim.build(objective, config.optim)
        self.average = Average(objective.model, config.average.decay)
        self.feed = self.material.feed(self._resume())
        self.module = self.world.wrap(
            train_step.ObjectiveModule(objective), objective.unused_parameters
        )
        if memory_probe.should_probe(config, self.device):
            memory_probe.probe(
                self.module,
                objective,
                self.optimizer,
                self.material,
                config,
                self.world,
                self.device,
                self.logger,
            )

    def _resume(self) -> Position:
        """Go on from the newest checkpoint, if there is one; rank 0 says which."""
        if self.world.main:
            checkpoint.recover(self.folder)
        path = self.world.gather(checkpoint.latest(self.folder))[0]
        if path is None:
            return Position()
        fingerprint = self.material.fingerprint()
        self.state, position = resume(
            path, self.objective, self.vocabulary, self.optimizer, fingerprint, self.average
        )
        self.saved = self.state.step
        before = read_json(path / "config.json")["training"]
        changed = changes(before, self.config.model_dump(mode="json"))
        if changed:  # dropped steps say nothing of other settings; a requeued job keeps its own
            self.state = judged_anew(self.state)
        facts = {"epoch": position.epoch, "checkpoint": path.name, "changed": changed}
        self.logger.event("resumed", step=self.saved, **facts)
        self.logger.say(
            "\n  ".join([f"Resumed from {path.name}, epoch {position.epoch}", *changed])
        )
        return position

    def loop(self) -> FitResult:
        """Train from where the state is."""
        state, config, stop = self.state, self.config, False
        self.objective.trainable.train()
        self.logger.begin(state.step)
        while not stop:
            ended = state.step >= config.max_steps
            due = state.step > 0 and state.step % config.valid_every == 0
            if (due or ended) and state.validated != state.step:
                self._validate(self.average)
            ended |= early_stopping.should_stop_early(
                config.stopping, state.step / config.max_steps, state.stale
            )
            if ended and config.average.last and not state.averaged:
                self._validate_mean()
            if ended or self._due():
                self._save()
            if ended:
                return self._result()
            stop = self._step(self.launcher.should_stop())
        self._save()
        self.world.gather(None)  # no rank leaves before rank 0 has written
        raise Interrupted(state.step)

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
        batches = [self.material.prepared(self.feed.take()) for _ in range(config.accumulate)]
        self.objective.begin_step(batches, self.world.all_sum)
        progress = state.step / config.max_steps
        highest = guard.limit(config.guard, state.typical_norm, state.in_a_row)
        setting = train_step.Setting(config, self.world, self.device, highest)
        outcome = train_step.take_step(
            self.module, self.optimizer, batches, progress, setting, stop, state.unreadable
        )
        state.step, state.averaged = state.step + 1, False
        if outcome.taken:
            self.average.follow(state.step)
        self.logger.count_step(outcome)
        self.objective.end_step(state.step, outcome, self.logger)
        guard.note_unreadable(state, self.material.max_unreadable, self.logger, outcome.unreadable)
        try:
            guard.note_step(state, config, self.logger, outcome, self.objective.trainable)
        except Failed as error:
            where = self.world.gather(self._retreat(outcome) if self.world.main else "")[0]
            raise Failed(error.cause, f"{error}. {where}") from None
        if state.step % config.log_every == 0 or state.step == 1:
            rate = self.optimizer.param_groups[0]["lr"]  # what is in force, not what should be
            self.logger.progress(state.step, self.feed.position.epoch, rate, state.skipped)
        return outcome.stop

    def _retreat(self, outcome: Outcome) -> str:
        """Rank 0 puts checkpoints of no use aside; where the next start goes on."""
        self.launcher.fence()
        aside, where = retreat(self.folder, self.state, outcome)
        for path in aside:
            self.logger.event("put_aside", checkpoint=path.name, now=checkpoint.DIVERGED)
        return where

    def _validate_mean(self) -> None:
        """Measure the mean of the last checkpoints and the present weights."""
        steps_back = self.config.average.last - 1
        model, present = self.objective.model, f"{self.state.step:08d}"
        before = [path for path in checkpoint.by_step(self.folder) if path.name < present]
        states = [checkpoint.load(path / checkpoint.WEIGHTS) for path in before[::-1][:steps_back]]
        weights = mean([*states, fsdp.whole(model.state_dict())])
        self.logger.say(f"The mean of the weights of {len(states) + 1} checkpoints:")
        self.state.averaged = True
        self._validate(Average(model, values=weights))

    def _validate(self, average: Average) -> None:
        """Measure the model with other weights, and keep these if they are the best."""
        with average.in_force():
            self._measure()

    def _measure(self) -> None:
        """Measure the model, and keep it if it is the best."""
        state, material = self.state, self.material
        measure = material.measure()
        self.objective.trainable.train()
        best = measure.order < (tuple(state.best) or material.nothing_learned)
        state.validated = state.step
        state.mark, state.stale = early_stopping.watch(
            self.config.stopping, state.step, measure.order, state.mark, state.stale
        )
        self.logger.log_validation(state.step, measure, best)
        unheard = {key: why for key, why in measure.unreadable if key not in state.unreadable}
        guard.note_unreadable(state, material.max_unreadable, self.logger, unheard)
        if best:
            state.best = list(measure.order)
            facts = {"step": state.step, **measure.figures, "loss": measure.loss}
            self._write(checkpoint.BEST, facts, {})

    def _save(self) -> None:
        """Save all that is needed to go on, once per step."""
        state = self.state
        if self.saved == state.step:
            return
        rate = self.config.optim.learning_rate
        guard.refuse_broken(state.step, rate, self.objective.trainable)
        self.saved, place = state.step, self.feed.position
        trainer = trainer_state(
            state,
            self.objective,
            self.optimizer,
            place,
            self.material.fingerprint(),
            self.average,
        )
        facts = {"step": state.step, "epoch": place.epoch, "loss": state.typical_loss}
        self._write(f"{state.step:08d}", facts, {"trainer.pt": trainer})
        self.logger.event("checkpoint", step=state.step)
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
            checkpoint.save(self.folder, name, files, self.launcher.fence)

    def _result(self) -> FitResult:
        """The result on every rank, once rank 0 has written what it names."""
        self.world.gather(None)
        state, path = self.state, self.folder / checkpoint.BEST
        if not checkpoint.complete(path):
            newest = self.folder / f"{state.step:08d}"
            return FitResult(state.step, newest, {}, state.skipped)
        known = {n: v for n, v in read_json(path / checkpoint.STATE).items() if n != "step"}
        return FitResult(state.step, path, known, state.skipped)
