"""What checkpoints cost a training: written aside, in place as before, and none at all.

    python -m bench.checkpoint [--size small] [--steps 25] [--rounds 5]

Blocks of training steps (`bench.steps`: real ones, on noise) take turns in one process, with
the same model and optimizer: without a checkpoint, with one written aside at the beginning, with
one written before the first step. A block ends when its checkpoint is on disk. What a checkpoint
adds to a block is what it costs, whatever the interval: the share of every interval follows from it
and from the time of a step. Wall time depends on what else the machine does and on its disk;
processor time is that of both threads, as if they shared one core.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.harness import Row, argument_parser, rounds, show, write
from bench.machine import device, machine, synchronize
from bench.steps import Stepper, block_arguments, noise
from bench.train_step import SHAPES, model
from lact_asr.config.training import LoopConfig
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from lact_asr.training.saving import Saver, copied

EVERY = LoopConfig.model_fields["checkpoint_every"].default
GOAL = 1.02  # with / without


class Training:
    """A model that takes steps and is saved as a run saves it."""

    def __init__(self, size: str, audio: float, folder: Path) -> None:
        objective = CTCObjective(model("ours", size).to(device()).train())
        self.step = Stepper(objective, noise(audio, audio))
        self.folder, self.saved = folder, 0

    def contents(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        trainer = {"optimizer": self.step.optimizer.state_dict()}
        weights = self.step.objective.model.state_dict()
        return {checkpoint.WEIGHTS: weights, "trainer.pt": trainer, checkpoint.STATE: {"step": 0}}

    def save(self, contents: dict[str, Any]) -> None:
        """Write a checkpoint and remove the one before the last."""
        self.saved += 1
        checkpoint.save(self.folder, f"{self.saved:08d}", contents)
        checkpoint.prune(self.folder, keep=2)


def block(training: Training, steps: int, how: str) -> tuple[float, float, float]:
    """Wall and processor seconds of so many steps, and how long they waited for a checkpoint."""
    with Saver(print) as saver:
        wall, processor = time.perf_counter(), time.process_time()
        if how == "in place":
            training.save(training.contents())
        elif how == "aside":
            saver.put(partial(training.save, copied(training.contents())))
        waited = time.perf_counter() - wall
        for _ in range(steps):
            training.step()
        saver.finish()
        synchronize()
        return time.perf_counter() - wall, time.process_time() - processor, waited


def rows(took: dict[str, list[tuple[float, float, float]]], steps: int) -> list[Row]:
    """Each way beside none, at the interval that was measured and at the default one."""
    column: Callable[[str, int], list[float]] = lambda how, number: [t[number] for t in took[how]]
    found = [
        Row("wait for a checkpoint, aside, beside in place",
            ours=column("aside", 2), theirs=column("in place", 2)),
    ]  # fmt: skip
    for number, clock in enumerate(("wall", "processor")):
        none = column("none", number)
        for how in ("aside", "in place"):
            with_it = column(how, number)
            found.append(Row(f"{steps} steps with one {how}, beside none, {clock}",
                             ours=with_it, theirs=none))  # fmt: skip
            scaled = [each * EVERY / steps for each in none]
            extra = [one - other for one, other in zip(with_it, none, strict=True)]
            found.append(Row(f"{EVERY} steps with one {how}, beside none, {clock}, by reckoning",
                             goal_ratio=GOAL if how == "aside" else None,
                             ours=[s + e for s, e in zip(scaled, extra, strict=True)],
                             theirs=scaled))  # fmt: skip
    return found


def main() -> None:
    """Measure, print the table, write bench/results/checkpoint.json."""
    parser = argument_parser("checkpoint", __doc__, tiny="the smallest sizes; nothing written")
    given = block_arguments(parser, SHAPES, 25)
    if given.tiny:
        given.size, given.steps, given.rounds, given.audio = "smallest", 2, 1, 2.0
    torch.set_num_threads(1)
    took: dict[str, list[tuple[float, float, float]]] = {"none": [], "aside": [], "in place": []}
    with tempfile.TemporaryDirectory() as folder:
        training = Training(given.size, given.audio, Path(folder))
        training.step()  # allocations, moments
        take: Callable[[str], None] = lambda how: took[how].append(
            block(training, given.steps, how)
        )
        rounds(given.rounds, *(partial(take, how) for how in took))
        newest = checkpoint.by_step(Path(folder))[-1]
        size = sum(file.stat().st_size for file in newest.iterdir())
    found = rows(took, given.steps)
    show(f"checkpoints of {size / 1e6:.0f} MB, {device().type}: median (least-most)", found)
    if not given.tiny:
        step = median(wall for wall, _, _ in took["none"]) / given.steps
        path = write("checkpoint", found, ran_on=machine() | {"time": "wall and processor"},
                     size=given.size, bytes=size, step_seconds=round(step, 4),
                     audio_seconds=given.audio)  # fmt: skip
        print(f"written to {path}")


if __name__ == "__main__":
    main()
