"""The checkpoints of a run: which one to go on from, when the next is due, how it is written."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lact_asr.config.training import LoopConfig
from lact_asr.distributed import fsdp
from lact_asr.distributed.processes import World
from lact_asr.model.interface import Model
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint, interval
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.resume import State
from lact_asr.training.retreat import sound_step
from lact_asr.training.saving import Saver, copied
from lact_asr.utils.errors import DataError


class Keeper:
    """Keeps what a run would need. Every rank has one, for weights may be split; rank 0 writes."""

    def __init__(
        self,
        folder: Path,
        model: Model,
        vocabulary: Vocabulary,
        config: LoopConfig,
        logger: TrainingLogger,
        world: World,
        fence: Callable[[], None],
    ) -> None:
        self.folder, self.model, self.vocabulary, self.config = folder, model, vocabulary, config
        self.logger, self.world, self.fence = logger, world, fence
        self.saver, self.meter = Saver(logger.say), interval.Meter()
        self.every = 0 if config.checkpoint_every == "auto" else config.checkpoint_every
        self.saved = 0  # the step of the newest numbered one

    def newest(self) -> tuple[Path | None, str]:
        """The checkpoint to go on from, and why there is none; damaged ones are put aside."""
        checkpoint.recover(self.folder)
        try:
            path, flaws = checkpoint.newest_whole(self.folder)
        except DataError as error:
            return None, str(error)
        for flaw in flaws:
            self.fence()
            aside = checkpoint.put_damaged_aside(flaw.path.parent)
            facts = {"file": str(flaw.path), "reason": flaw.why, "now": aside.name}
            self.logger.event("damaged_checkpoint", **facts)
            self.logger.say(f"Damaged: {flaw.path}: {flaw.why}; its folder is now {aside.name}")
        return path, ""

    def is_due(self, state: State) -> bool:
        """Whether to save: not while steps are dropped, with the weights that may be the reason."""
        every = self.every or interval.FIRST
        return not state.in_a_row and state.step // every > self.saved // every

    def save(self, state: State, epoch: int, trainer: dict[str, Any]) -> None:
        """All that is needed to go on from this step: `trainer_state` beside the model."""
        self.saved = state.step
        facts = {"step": state.step, "epoch": epoch, "loss": state.typical_loss}
        self._write(f"{state.step:08d}", state, facts, {"trainer.pt": trainer})
        if self.config.checkpoint_every == "auto":
            self._choose_interval(state.step)

    def save_best(self, state: State, facts: dict[str, Any]) -> None:
        """The model alone, as the best one, and what was measured of it."""
        self._write(checkpoint.BEST, state, {"step": state.step, **facts}, {})

    def settle(self) -> None:
        """Wait, on every rank, until rank 0 has written all."""
        self.saver.finish()
        self.world.gather(None)

    def _choose_interval(self, step: int) -> None:
        """Set how often all ranks save, from what rank 0 has measured; a new choice is told."""
        meter, each = self.world.gather((self.meter, self.logger.step_seconds(step)))[0]
        hours = self.config.failure_every
        steps = interval.choose(meter, each, 3600 * hours, self.every)
        if steps == self.every:
            return
        self.every = steps
        facts = {"save_seconds": meter.save, "write_seconds": meter.write, "step_seconds": each}
        rounded = {name: round(value, 4) for name, value in facts.items()}
        self.logger.event("checkpoint_interval", steps=steps, failure_every_hours=hours, **rounded)
        self.logger.say(
            f"A checkpoint every {steps} steps, {steps * each:.3g} s: one holds training up for "
            f"{meter.save:.3g} s, and a run is taken to be cut every {hours:g} h"
        )

    def _write(self, name: str, state: State, facts: dict[str, Any], more: dict[str, Any]) -> None:
        """A checkpoint, by rank 0, of what all ranks have; written aside."""
        began = time.monotonic()
        self.saver.room(state.step)
        waited = time.monotonic() - began
        tensors = {checkpoint.WEIGHTS: self.model.state_dict(), **more}
        tensors = fsdp.whole(tensors, keep=self.world.main)
        if not self.world.main:
            return
        described = checkpoint.describe(self.model, self.vocabulary, self.config)
        files = copied({**tensors, "config.json": described, checkpoint.STATE: facts})
        took = {"wait_seconds": waited, "copy_seconds": time.monotonic() - began - waited}
        self.meter.save = took["copy_seconds"]
        self.saver.put(partial(self._write_aside, name, files, took, state))

    def _write_aside(
        self, name: str, files: dict[str, Any], took: dict[str, float], state: State
    ) -> None:
        """What the other thread does with a checkpoint."""
        began = time.monotonic()
        checkpoint.save(self.folder, name, files, self.fence)
        if name == checkpoint.BEST:
            return
        self.meter.write = time.monotonic() - began
        seconds = {**took, "write_seconds": self.meter.write}
        rounded = {what: round(value, 3) for what, value in seconds.items()}
        self.logger.event("checkpoint", step=files[checkpoint.STATE]["step"], **rounded)
        newest = max(self.config.keep_checkpoints, self.config.average.last)
        checkpoint.prune(self.folder, newest, sound_step(self.folder, state))
