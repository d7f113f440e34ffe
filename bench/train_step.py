"""A full training step of three models of equal parameters: time and memory by length of clip.

    python -m bench.train_step [--size small] [--clips 16 35 120] [--rounds 5]

Ours, torchaudio's Conformer and a plain transformer (bench/peers.py) take the same step, the one of
`lact_asr.training.train_step`: features, forward, CTC, backward, clipping, AdamW, on noise with 14
labels a second. They take turns; a batch holds the same audio at every length, so what grows from
16 s to 120 s is the price of length. Peak memory is that of one step in a fresh process, above what
Python and torch take. On a GPU: bf16, wall time, and sizes base, improved, large are within reach;
without one: processor time of one thread.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import nn

from bench.harness import Row, rounds, show, write
from bench.machine import device, machine, matmul_peak, precision, seconds
from bench.peers import equal, parameters
from lact_asr.config.model import SIZES, ModelConfig
from lact_asr.config.training import OptimConfig, TrainingConfig
from lact_asr.data.audio import RATE
from lact_asr.data.batch import Batch
from lact_asr.distributed.processes import World
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import optim, train_step
from lact_asr.training.objective import CTCObjective

SYMBOLS = 29
LABELS = 14  # a second of read speech
SMALL = ModelConfig(hidden=256, layers=6, attention_heads=4, lact_heads=2, mlp=768, conv_layers=2)
SMALLEST = ModelConfig(hidden=32, layers=1, attention_heads=2, lact_heads=1, mlp=64, conv_layers=2)
SHAPES = {"small": SMALL, "smallest": SMALLEST, **SIZES}
NAMES = ("ours", "conformer", "transformer")
GOALS = {16.0: 1.0, 120.0: 1 / 1.5 if device().type == "cuda" else None}  # time / Conformer's
SHARE = 0.30 * 790e12  # FLOP/s that `improved` should reach on an H200, in bf16


def model(name: str, size: str) -> nn.Module:
    """A contestant with its first weights."""
    torch.manual_seed(0)
    ours = SHAPES[size]
    return Recognizer(ours, SYMBOLS) if name == "ours" else equal(name, ours, SYMBOLS)


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


def stepper(name: str, size: str, batch: Batch) -> Callable[[], float]:
    """A function that takes one training step and says its loss."""
    objective = CTCObjective(model(name, size).to(device()).train())
    config = TrainingConfig(precision=precision(), optim=OptimConfig(learning_rate=1e-4))
    optimizer = optim.build(objective, config.optim)
    called, setting = (
        train_step.ObjectiveModule(objective),
        train_step.Setting(config, World(), device()),
    )

    def step() -> float:
        outcome = train_step.take_step(called, optimizer, [batch], 0.0, setting, False, {})
        assert outcome.taken, f"{name}: loss {outcome.loss}, gradient norm {outcome.grad_norm}"
        return outcome.loss

    return step


def peak_memory(name: str, size: str, clip: float, batch_seconds: float) -> float:
    """GiB that the model and one step take at most."""
    torch.set_num_threads(1)
    batch = noise(clip, batch_seconds)
    before = psutil.Process().memory_info().rss
    stepper(name, size, batch)()
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return max(high_water() - before, 1) / 2**30


def high_water() -> int:
    """Most bytes this process has had in memory; getrusage would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def in_fresh_process(work: Callable[[], float]) -> float:
    """The result of a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work).result()


def measured(size: str, batch: Batch, count: int) -> dict[str, list[float]]:
    """Seconds of the contestants' steps, taken in turns."""
    took: dict[str, list[float]] = {name: [] for name in NAMES}
    step = {name: stepper(name, size, batch) for name in NAMES}
    for name in NAMES:
        step[name]()  # allocations, kernels
    rounds(count, *(lambda name=name: took[name].append(seconds(step[name])) for name in NAMES))
    return took


def at(clip: float, given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one length of clip, and what else was found out."""
    batch = noise(clip, given.batch_seconds)
    audio = batch.seconds
    took = measured(given.size, batch, given.rounds)
    memory = {
        name: [in_fresh_process(partial(peak_memory, name, given.size, clip, given.batch_seconds))]
        for name in NAMES
    }
    rows = []
    for peer, goal in (("conformer", GOALS.get(clip)), ("transformer", None)):
        beside = f"{clip:g} s clips, beside the {peer}"
        rate = lambda name: [audio / each for each in took[name]]
        rows += [
            Row(f"step on {beside}", goal_ratio=goal, ours=took["ours"], theirs=took[peer]),
            Row(f"audio s per s, {beside}", unit="1", ours=rate("ours"), theirs=rate(peer)),
            Row(f"peak GiB, {beside}", unit="GiB", ours=memory["ours"], theirs=memory[peer]),
        ]
    tokens = int(SHAPES[given.size].tokens(batch.wave_lengths).sum())
    operations = 6 * parameters(model("ours", given.size)) * tokens
    if device().type == "cuda" and given.size == "improved":
        at_goal = [operations / SHARE]
        rows.append(Row(f"step on {clip:g} s clips, beside 30 % of 790 TFLOP/s", goal_ratio=1.0,
                        ours=took["ours"], theirs=at_goal))  # fmt: skip
    return rows, {"clip_seconds": clip, "batch_audio_seconds": audio,
                  "flop_per_second_6ND": round(operations / median(took["ours"]))}  # fmt: skip


def main() -> None:
    """Measure, print the table, write bench/results/train_step.json."""
    on_gpu = device().type == "cuda"
    parser = argparse.ArgumentParser(prog="python -m bench.train_step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=SHAPES, default="base" if on_gpu else "small")
    parser.add_argument("--clips", type=float, nargs="+", default=[16.0, 35.0, 120.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-seconds", type=float, default=960.0 if on_gpu else 64.0)
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes; nothing written")
    given = parser.parse_args()
    if given.tiny:
        given.size, given.clips, given.rounds, given.batch_seconds = "smallest", [2.0], 1, 4.0
    torch.set_num_threads(1)
    counts = {name: parameters(model(name, given.size)) for name in NAMES}
    print(", ".join(f"{name}: {count / 1e6:.2f} M" for name, count in counts.items()), flush=True)
    rows, facts = [], []
    peak = matmul_peak()
    for clip in given.clips:
        more, found = at(clip, given)
        rows += more
        facts.append(
            found | {"share_of_matmul_peak": round(found["flop_per_second_6ND"] / peak, 3)}
        )
    show(f"training step, {device().type}: median (least-most)", rows)
    for found in facts:
        print(f"ours on {found['clip_seconds']:g} s clips: {found['flop_per_second_6ND'] / 1e9:.1f}"
              f" GFLOP/s (6 N D), {found['share_of_matmul_peak']:.0%} of the matrix product's "
              f"{peak / 1e9:.1f}")  # fmt: skip
    if not given.tiny:
        path = write("train_step", rows, ran_on=machine(), size=given.size, parameters=counts,
                     matmul_flop_per_second=round(peak), clips=facts)  # fmt: skip
        print(f"written to {path}")


if __name__ == "__main__":
    main()
