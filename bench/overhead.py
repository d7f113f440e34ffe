"""What looking after a training costs it: health, events, the ledger's clock, and checkpoints.

    python -m bench.overhead --data SPEECH [--size small] [--steps 50] [--rounds 5]

The same batches of real speech, the same model and optimizer, steps of `take_step` in three ways:
bare, in a loop of nothing else; watched, in the training loop as a worker runs it, with its health,
guard, clock, metrics and events on disk behind the fence; and whole, with a checkpoint besides.
They take turns. Without a GPU it is processor time, all threads together: the one that writes a
checkpoint too. Where other work shares the cores even that differs by 10 % between blocks, so the
goal is for what can be told to a thousandth: of one and the same block, all of its time beside that
of its data and its `take_step`. One checkpoint in so few steps is more than there is: by reckoning
it is one in 500.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from bench.harness import Row, argument_parser, commit, rounds, show, write
from bench.machine import device, machine, precision, stopwatch
from bench.steps import block_arguments
from bench.train_step import SHAPES
from jobs.fence import Attempt, Fence
from jobs.step_folder import StepDir
from lact_asr.config.training import LoopConfig, OptimConfig, TrainingConfig
from lact_asr.data.batch_plan import Position
from lact_asr.data.librispeech import scan
from lact_asr.data.loader import Stream
from lact_asr.data.manifest import Utterance
from lact_asr.distributed.processes import World
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import optim, train_step
from lact_asr.training.objective import CTCObjective
from lact_asr.training.resume import step_seed
from lact_asr.training.speech import Speech
from lact_asr.training.trainer import fit

EVERY = LoopConfig.model_fields["checkpoint_every"].default
GOAL = 1.02  # with / without
WARM = 5  # steps before the clock starts: allocations, moments
OWN = time.perf_counter if device().type == "cuda" else time.thread_time
VOCABULARY = Vocabulary.characters()


class Contest:
    """What the contestants share: the data, the settings, and their times."""

    def __init__(self, size: str, speech: Sequence[Utterance], steps: int, audio: float) -> None:
        self.size, self.speech, self.steps, self.audio = size, list(speech), steps, audio
        self.last = WARM + steps + 1
        self.took: dict[str, list[float]] = {"bare": [], "watched": [], "whole": []}
        self.inside: dict[str, list[float]] = {"watched": [], "whole": []}
        self.spent = 0.0  # seconds in data and steps

    def config(self, every: int) -> TrainingConfig:
        """A checkpoint every so many steps, no validation before the end."""
        return TrainingConfig(
            max_steps=self.last,
            batch_seconds=self.audio,
            valid_every=10**9,
            checkpoint_every=every,
            samples=0,
            workers=0,
            precision=precision(),
            optim=OptimConfig(learning_rate=1e-4),
        )

    def objective(self) -> CTCObjective:
        """The model, the same each time."""
        torch.manual_seed(0)
        return CTCObjective(Recognizer(SHAPES[self.size], len(VOCABULARY)).to(device()).train())

    def bare(self) -> None:
        """Steps in a loop of nothing else."""
        objective, config, world = self.objective(), self.config(10**9), World()
        optimizer = optim.build(objective, config.optim)
        module = train_step.ObjectiveModule(objective)
        speech = Speech(
            objective, self.speech, self.speech[:1], VOCABULARY, config, world, device()
        )
        feed, setting = speech.feed(Position()), train_step.Setting(config, world, device())
        watch = stopwatch()
        for step in range(WARM + self.steps):
            if step == WARM:
                watch()
            optim.set_rate(optimizer, optim.rate_factor(config.optim, step, self.last))
            torch.manual_seed(step_seed(config.seed, step, 0))
            batch = speech.prepared(feed.take())
            train_step.take_step(module, optimizer, [batch], 0.0, setting, False, {})
        self.took["bare"].append(watch() / self.steps)

    def counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time on this thread counted as the step's own."""

        def counted(*given: Any) -> Any:
            began = OWN()
            try:
                return work(*given)
            finally:
                self.spent += OWN() - began

        return counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        """In here the training loop's data and steps are counted."""
        with (
            patch.object(train_step, "take_step", self.counted(train_step.take_step)),
            patch.object(Stream, "take", self.counted(Stream.take)),
            patch.object(Speech, "prepared", self.counted(Speech.prepared)),
        ):
            yield

    def looked_after(self, name: str, every: int) -> None:
        """The same steps in the training loop, as a worker runs it."""
        times: list[tuple[float, float]] = []
        watch = stopwatch()

        def disturb(number: int, *_: object) -> None:
            if number in (WARM + 1, WARM + self.steps + 1):
                times.append((watch(), self.spent))

        def report(line: Mapping[str, Any]) -> None:
            fence.check()
            step.add_metrics(line)

        def event(name: str, **facts: object) -> None:
            fence.check()
            step.add_event(name, facts)

        with tempfile.TemporaryDirectory() as folder, self.counting():
            step = StepDir(Path(folder))
            fence = Fence(step, Attempt("train.1", "1", 0))
            fence.enter(claim=True)
            fit(
                self.objective(),
                self.speech,
                self.speech[:1],
                VOCABULARY,
                self.config(every),
                step.path,
                report=report,
                event=event,
                should_stop=lambda: False,
                fence=fence.check,
                disturb=disturb,
                device=device(),
            )
        (_, before), (took, after) = times
        self.took[name].append(took / self.steps)
        self.inside[name].append((after - before) / self.steps)


def rows(
    took: Mapping[str, list[float]], inside: Mapping[str, list[float]], steps: int
) -> list[Row]:
    """Each way beside the bare one, then beside its own steps; a checkpoint as often as usual."""
    outside = {
        name: [whole - own for whole, own in zip(took[name], inside[name], strict=True)]
        for name in inside
    }
    once = median(outside["whole"]) - median(outside["watched"])  # a checkpoint, for each step
    usual = [own + extra for own, extra in zip(inside["watched"], outside["watched"], strict=True)]
    usual = [each + max(0.0, once) * steps / EVERY for each in usual]
    return [
        Row("step with health, clock, events, beside bare", ours=took["watched"],
            theirs=took["bare"]),
        Row(f"the same and a checkpoint in {steps} steps, beside bare", ours=took["whole"],
            theirs=took["bare"]),
        Row("all of a block, beside its data and steps", goal_ratio=GOAL, ours=took["watched"],
            theirs=inside["watched"]),
        Row(f"the same, with a checkpoint in {EVERY} steps, by reckoning", goal_ratio=GOAL,
            ours=usual, theirs=inside["watched"]),
    ]  # fmt: skip


def main() -> None:
    """Measure, print the table, write bench/results/overhead.json."""
    parser = argument_parser("overhead", __doc__, tiny="the smallest sizes; nothing written")
    parser.add_argument("--data", type=Path, required=True, help="speech in LibriSpeech layout")
    given = block_arguments(parser, SHAPES, 50)
    if given.tiny:
        given.size, given.steps, given.rounds = "smallest", 3, 1
    torch.set_num_threads(1)
    contest = Contest(given.size, scan(given.data), given.steps, given.audio)
    ways: dict[str, Callable[[], None]] = {
        "bare": contest.bare,
        "watched": partial(contest.looked_after, "watched", 10**9),
        "whole": partial(contest.looked_after, "whole", given.steps),
    }
    rounds(given.rounds, *ways.values())
    found = rows(contest.took, contest.inside, given.steps)
    show(f"a training step looked after, {device().type}: median (least-most)", found)
    if not given.tiny:
        path = write("overhead", found, ran_on=machine(), commit=commit(), size=given.size,
                     steps_of_a_block=given.steps, audio=given.audio)  # fmt: skip
        print(f"written to {path}")


if __name__ == "__main__":
    main()
