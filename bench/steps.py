"""What the benchmarks of a training step share: noise to train on, a step, turns, peak memory."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.harness import rounds
from bench.machine import device, precision, seconds
from lact_asr.config.presets import merge_preset
from lact_asr.config.training import TrainingConfig
from lact_asr.data.audio import RATE
from lact_asr.data.batch import Batch
from lact_asr.distributed.processes import World
from lact_asr.model.blocks import compile_blocks
from lact_asr.training import optim, train_step
from lact_asr.training.objective import Objective

SYMBOLS = 29
LABELS = 14  # a second of read speech
# On a CPU the path to the compiler is tried, not its code: that took a busy core three minutes, and
# "aot_eager", which makes the graph of the gradient too, 10 s more than this.
BACKEND = "inductor" if device().type == "cuda" else "eager"


def block_arguments(
    parser: argparse.ArgumentParser, sizes: Iterable[str], steps: int
) -> argparse.Namespace:
    """What was asked for, of a benchmark in which blocks of steps take turns."""
    parser.add_argument("--size", choices=sizes, default="small")
    parser.add_argument("--steps", type=int, default=steps, help="of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--audio", type=float, default=16.0, help="seconds in a batch")
    return parser.parse_args()


def noise(clip: float, batch_seconds: float) -> Batch:
    """Clips of up to `clip` seconds, the second one 5 % shorter: there is padding to mask."""
    generator = torch.Generator().manual_seed(0)
    count = max(1, round(batch_seconds / clip))
    lengths = torch.full((count,), round(clip * RATE))
    lengths[1:2] = round(0.95 * clip * RATE)
    labels = torch.full((count,), round(clip * LABELS))
    targets = torch.randint(1, SYMBOLS, (int(labels.sum()),), generator=generator)
    waves = torch.randn(count, int(lengths.max()), generator=generator) * 0.1
    names = [str(number) for number in range(count)]
    return Batch(names, names, waves, lengths, targets, labels)


class Stepper:
    """Takes one training step after the other on one batch, as a run takes them."""

    def __init__(
        self,
        objective: Objective[Any, Any],
        batch: Batch,
        progress: float = 0.0,
        **settings: Any,  # of TrainingConfig
    ) -> None:
        usual = {"precision": precision(), "optim": {"learning_rate": 1e-4}}
        config = TrainingConfig.model_validate(merge_preset(settings, usual))
        if config.compile:  # only where it is asked for: peers run as they are written
            compile_blocks(objective.model, True, BACKEND)
        self.objective, self.batch, self.progress = objective, batch, progress
        self.optimizer = optim.build(objective, config.optim)
        self._called = train_step.ObjectiveModule(objective)
        self._setting = train_step.Setting(config, World(), device())

    def __call__(self) -> float:
        """The loss of one more step."""
        batch = self.batch.to(device())
        self.objective.begin_step([batch], World().all_sum)
        outcome = train_step.take_step(
            self._called, self.optimizer, [batch], self.progress, self._setting, False, {}
        )
        assert outcome.taken, f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
        return float(outcome.loss)


def in_turns(steppers: Mapping[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of each contestant's steps, after one that allocates and chooses kernels."""
    took: dict[str, list[float]] = {name: [] for name in steppers}
    for take in steppers.values():
        take()
    turns = [partial(_timed, took[name], take) for name, take in steppers.items()]
    rounds(count, *turns)
    return took


def _timed(took: list[float], take: Callable[[], object]) -> None:
    took.append(seconds(take))


def peak_memory(build: Callable[[], Stepper]) -> float:
    """GiB that a stepper and one step take at most, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, build).result()


def _peak_here(build: Callable[[], Stepper]) -> float:
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    build()()
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return max(_high_water() - before, 1) / 2**30


def _high_water() -> int:
    """Most bytes this process has had in memory; getrusage would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
