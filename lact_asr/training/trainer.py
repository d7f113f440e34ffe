"""The one training loop of the project.

It takes an objective (a model and its loss), what to train on and measure with (speech: `fit`; any
`Material`: `learn`) and settings, and leaves checkpoints. It can be killed at any moment and called
again with the same arguments: it goes on from the newest complete checkpoint, on one process bit
for bit as if nothing had happened. For that everything random is a function of (seed, step, rank):
no generator needs saving, and nothing that draws from one between two steps can disturb it.

A pass of the loop is: stop if asked, validate if due, save if due, end if done, take a step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lact_asr.config.training import LoopConfig, TrainingConfig
from lact_asr.data.batch_plan import Position
from lact_asr.data.manifest import Utterance
from lact_asr.distributed import fsdp, processes
from lact_asr.model import blocks
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import (
    checkpoint,
    checksums,
    early_stopping,
    guard,
    length,
    memory_probe,
    optim,
    quarantine,
    train_step,
)
from lact_asr.training.averaging import Average, mean
from lact_asr.training.clock import SAVING, STALLED, VALIDATING
from lact_asr.training.health import Scale
from lact_asr.training.keeper import Keeper
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Outcome
from lact_asr.training.material import Material
from lact_asr.training.objective import Objective, SpeechObjective
from lact_asr.training.origin import changes
from lact_asr.training.resume import State, judged_anew, resume, step_seed, trainer_state
from lact_asr.training.retreat import retreat
from lact_asr.training.speech import Speech
from lact_asr.training.utilization import Utilization
from lact_asr.utils.disturbance import undisturbed
from lact_asr.utils.errors import DataError, Failed, Interrupted
from lact_asr.utils.locks import no_fence


@dataclass(frozen=True)
class Launcher:
    """Who has started the training: told what happens, and asked whether to go on."""

    report: Callable[[Mapping[str, Any]], None]  # metrics
    event: Callable[..., None]
    should_stop: Callable[[], bool]
    fence: Callable[[], None] = no_fence  # before a write: raises where a newer process has begun
    # before a step: its number, what learns, the optimizer, the micro-batches of this rank
    disturb: Callable[..., None] = undisturbed


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
    disturb: Callable[..., None] = undisturbed,
    device: torch.device | None = None,
) -> FitResult:
    """Train on speech to the end, until the dev WER stops falling, or until asked to stop.

    Every rank calls this with the same arguments. Raises what `learn` does, and DataError: nothing
    to train or validate on, more than half of the utterances unusable, more than max_unreadable
    unreadable files.
    """
    world = processes.start()
    device = device or world.device()
    speech = Speech(objective, train, dev, vocabulary, config, world, device)
    launcher = Launcher(report, event, should_stop, fence, disturb)
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
        with run.keeper.saver:
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
        self.pace = material.batches_per_epoch() / config.accumulate if config.epochs else 0.0
        self.steps = length.total_steps(config, length.Course(pace=self.pace))
        self.scale = Scale(
            len(vocabulary),
            self.steps,
            config.optim.clip_norm,
            f"{material.terms.budget} {material.budget:g}",
        )
        use = Utilization.of(objective.model, material, world, device)
        self.logger = TrainingLogger(
            launcher.report, launcher.event, self.scale, material.terms, use, loud=world.main
        )
        self.keeper = Keeper(
            folder, objective.model, vocabulary, config, self.logger, world, launcher.fence
        )
        self.state = State()
        self.uncompiled: int | None = None  # what the compiler gave up on; None: it was not asked

    def prepare(self) -> None:
        """Model, optimizer, what an earlier process left, and the batches from there on."""
        objective, config = self.objective, self.config
        self.logger.start(self.material)
        objective.trainable.to(self.device)
        # of matrices: convolutions are in TF32 by PyTorch's default
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        self._arrange_blocks()
        if config.sharded and self.world.world_size > 1:
            model = objective.model
            group = self.world.on_node() if config.sharded == "node" else None
            fsdp.shard(model, objective.trainable, model.blocks, model.attends, group)
        self.optimizer = optim.build(objective, config.optim, self.world)
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

    def _arrange_blocks(self) -> None:
        """How the model's blocks run in training, before anything is wrapped around them."""
        model, config = self.objective.model, self.config
        compiled = blocks.should_compile(config.compile, model, self.device)
        if config.flex_attention:
            blocks.use_flex_attention(model, compiled)
        if compiled:
            self.uncompiled = blocks.left_uncompiled()
            count, strict = len(model.blocks), bool(config.compile)
            blocks.compile_blocks(model, strict)
            self.logger.event("compiling", blocks=count)
            self.logger.say(f"Compiling {count} blocks: the first step takes a minute or two more")
        if config.activation_checkpointing:
            blocks.recompute_blocks(model)

    def _tell_uncompiled(self) -> None:
        """Say what the compiler has given up on: the training goes on without, and slower."""
        if self.uncompiled is None or (count := blocks.left_uncompiled()) <= self.uncompiled:
            return
        self.uncompiled = count
        self.logger.event("not_compiled", functions=count, step=self.state.step)
        self.logger.say(
            f"The compiler has given up on {count} functions of the blocks (WON'T CONVERT, above, "
            "says why): these run as they are written, slower, and as right"
        )

    def _resume(self) -> Position:
        """Go on from the newest checkpoint that is whole, if there is one; rank 0 says which."""
        path, trouble = self.world.gather(self.keeper.newest() if self.world.main else (None, ""))[
            0
        ]
        if trouble:
            raise DataError(trouble)
        if path is None:
            self._set_length()
            return Position()
        fingerprint = self.material.fingerprint()
        self.state, position = resume(
            path, self.objective, self.vocabulary, self.optimizer, fingerprint, self.average
        )
        self.keeper.saved = self.state.step
        self._set_length()
        before = checkpoint.read_config(path)["training"]
        changed = changes(before, self.config.model_dump(mode="json"))
        if changed:  # dropped steps say nothing of other settings; a requeued job keeps its own
            self.state = judged_anew(self.state)
        facts = {"epoch": position.epoch, "checkpoint": path.name, "changed": changed}
        self.logger.event("resumed", step=self.state.step, **facts)
        self.logger.say(
            "\n  ".join([f"Resumed from {path.name}, epoch {position.epoch}", *changed])
        )
        return position

    def _set_length(self) -> None:
        """How many steps there are, where it is given in epochs: from what has been heard."""
        config, state = self.config, self.state
        if config.epochs is None:
            return
        state.course = state.course.at_pace(self.pace, state.step)
        self.steps = length.total_steps(config, state.course)
        self.scale = replace(self.scale, total_steps=self.steps)
        self.logger.rescale(self.scale)
        facts = {"epochs": config.epochs, "steps": self.steps, "steps_per_epoch": self.pace}
        self.logger.event("length", **facts)
        self.logger.say(
            f"{config.epochs:g} epochs are {self.steps:,} steps, {self.pace:g} an epoch"
        )

    def loop(self) -> FitResult:
        """Train from where the state is."""
        state, config, stop = self.state, self.config, False
        self.objective.trainable.train()
        self.logger.begin(state.step, state.vitals)
        while not stop:
            self.keeper.saver.check()
            ended = state.step >= self.steps
            due = state.step > 0 and state.step % config.valid_every == 0
            if (due or ended) and state.validated != state.step:
                self._validate(self.average)
            ended |= early_stopping.should_stop_early(
                config.stopping, state.step / self.steps, state.stale
            )
            if ended and config.average.last and not state.averaged:
                self._validate_mean()
            if ended:
                self._finish()
                return self._result()
            if self.keeper.is_due(state):
                with self.logger.clock.phase(SAVING):
                    self._save()
            stop = self._step(self.launcher.should_stop())
            self._tell_uncompiled()
        self._finish()
        raise Interrupted(state.step)

    def _finish(self) -> None:
        """The last checkpoint, whole on every rank's return."""
        with self.logger.clock.phase(SAVING):
            self._save()
            self.keeper.settle()
        self.logger.end(self.state.step)

    def _step(self, stop: bool) -> bool:
        """One step; whether some rank was asked to stop."""
        state, config = self.state, self.config
        factor = optim.rate_factor(config.optim, state.step, self.steps)
        optim.set_rate(self.optimizer, factor)
        taken = [self._take() for _ in range(config.accumulate)]
        self.launcher.disturb(state.step + 1, self.objective.trainable, self.optimizer, taken)
        outcome = self._attempt(taken, stop)
        if not outcome.finite and (bad := self._find_faulty(taken)) is not None:
            most = self.material.max_unreadable
            guard.note_quarantined(state, most, self.logger, bad)
            outcome = self._attempt(taken, outcome.stop)
            self.logger.retried(state.step + 1, outcome)
        state.step, state.averaged = state.step + 1, False
        if outcome.taken:
            self.average.follow(state.step)
        rate = self.optimizer.param_groups[0]["lr"]  # what is in force, not what should be
        self.logger.count_step(state.step, outcome, rate)
        self.objective.end_step(state.step, outcome, self.logger)
        guard.note_unreadable(state, self.material.max_unreadable, self.logger, outcome.unreadable)
        try:
            guard.note_step(state, config, self.logger, outcome, self.objective.trainable)
            guard.refuse_lost(state, self.scale, config.optim.learning_rate)
        except Failed as error:
            where = self.world.gather(self._retreat(outcome) if self.world.main else "")[0]
            raise Failed(error.cause, f"{error}. {where}") from None
        if state.step % config.log_every == 0 or state.step == 1:
            self.logger.progress(state.step, self.feed.position.epoch, rate, state.skipped)
        return outcome.stop

    def _take(self) -> Any:
        """The next batch."""
        with self.logger.clock.phase(STALLED):
            return self.feed.take()

    def _attempt(self, taken: Sequence[Any], stop: bool) -> Outcome:
        """Take the step with these batches of the feed, or leave the model as it is.

        A second time everything random is as it was the first time.
        """
        state, config = self.state, self.config
        batches = self._prepared(taken)
        self.objective.begin_step(batches, self.world.all_sum)
        progress = state.step / self.steps
        highest = guard.limit(config.guard, state.typical_norm, state.in_a_row)
        setting = train_step.Setting(config, self.world, self.device, highest)
        return train_step.take_step(
            self.module, self.optimizer, batches, progress, setting, stop, state.unreadable
        )

    def _prepared(self, taken: Sequence[Any]) -> list[Any]:
        """The batches as they are heard in this step, without quarantined utterances."""
        torch.manual_seed(step_seed(self.config.seed, self.state.step, self.world.rank))
        kept = [quarantine.without(batch, self.state.quarantined) for batch in taken]
        return [self.material.prepared(batch) for batch in kept]

    def _find_faulty(self, taken: Sequence[Any]) -> dict[str, str] | None:
        """What of a step that came to nothing finite is to be left out; None: drop the step."""
        progress = self.state.step / self.steps
        setting = train_step.Setting(self.config, self.world, self.device)
        return quarantine.find_faulty(self.module, self._prepared(taken), progress, setting)

    def _retreat(self, outcome: Outcome) -> str:
        """Rank 0 puts checkpoints of no use aside; where the next start goes on."""
        self.keeper.saver.wait()  # for one that may be of no use either
        self.launcher.fence()
        aside, where = retreat(self.folder, self.state, outcome)
        for path in aside:
            self.logger.event("put_aside", checkpoint=path.name, now=checkpoint.DIVERGED)
        return where

    def _validate_mean(self) -> None:
        """Measure the mean of the last checkpoints and the present weights."""
        self.keeper.settle()
        steps_back = self.config.average.last - 1
        model, present = self.objective.model, f"{self.state.step:08d}"
        before = [path for path in checkpoint.by_step(self.folder) if path.name < present]
        taken = before[::-1][:steps_back]
        for path in taken:
            checksums.require_same(path, checkpoint.WEIGHTS)
        states = [checkpoint.load(path / checkpoint.WEIGHTS) for path in taken]
        weights = mean([*states, fsdp.whole(model.state_dict())])
        self.logger.say(f"The mean of the weights of {len(states) + 1} checkpoints:")
        self.state.averaged = True
        self._validate(Average(model, values=weights))

    def _validate(self, average: Average) -> None:
        """Measure the model with other weights, and keep these if they are the best."""
        with self.logger.clock.phase(VALIDATING), average.in_force():
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
            facts = {**measure.figures, "loss": measure.loss}
            with self.logger.clock.phase(SAVING):
                self.keeper.save_best(state, facts)

    def _save(self) -> None:
        """Save all that is needed to go on, once per step."""
        state, objective = self.state, self.objective
        if self.keeper.saved == state.step:
            return
        guard.refuse_broken(state.step, self.config.optim.learning_rate, objective.trainable)
        place, fingerprint = self.feed.position, self.material.fingerprint()
        trainer = trainer_state(state, objective, self.optimizer, place, fingerprint, self.average)
        self.keeper.save(state, place.epoch, trainer)

    def _result(self) -> FitResult:
        """The result on every rank; rank 0 has written what it names."""
        state, path = self.state, self.folder / checkpoint.BEST
        if not checkpoint.complete(path):
            newest = self.folder / f"{state.step:08d}"
            return FitResult(state.step, newest, {}, state.skipped)
        known = {name: value for name, value in checksums.facts(path).items() if name != "step"}
        return FitResult(state.step, path, known, state.skipped)
