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
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.harness import Row, argument_parser, show, write
from bench.machine import device, machine, matmul_peak
from bench.peers import equal, parameters
from bench.steps import SYMBOLS, Stepper, in_turns, noise, peak_memory
from lact_asr.config.model import SIZES, ModelConfig
from lact_asr.data.batch import Batch
from lact_asr.model.interface import CTCModel
from lact_asr.model.recognizer import Recognizer
from lact_asr.training.objective import CTCObjective

SMALL = ModelConfig(hidden=256, layers=6, attention_heads=4, lact_heads=2, mlp=768, conv_layers=2)
SMALLEST = ModelConfig(hidden=32, layers=1, attention_heads=2, lact_heads=1, mlp=64, conv_layers=2)
SHAPES = {"small": SMALL, "smallest": SMALLEST, **SIZES}
NAMES = ("ours", "conformer", "transformer")
ON_GPU = device().type == "cuda"
GOALS = {16.0: 1 / 1.3, 120.0: 1 / 3} if ON_GPU else {16.0: 1.0}  # time / Conformer's
PEAK = 790e12  # FLOP/s of large products in bf16 on an H200, as measured; its data sheet: 989e12
SHARE = 0.35 * PEAK  # that `improved` should reach


def model(name: str, size: str) -> CTCModel:
    """A contestant with its first weights."""
    torch.manual_seed(0)
    ours = SHAPES[size]
    return Recognizer(ours, SYMBOLS) if name == "ours" else equal(name, ours, SYMBOLS)


def stepper(name: str, size: str, batch: Batch, **settings: Any) -> Stepper:
    """A contestant that takes training steps."""
    return Stepper(CTCObjective(model(name, size).to(device()).train()), batch, **settings)


def fresh(name: str, size: str, clip: float, batch_seconds: float) -> Stepper:
    """The same on a batch of its own, for another process."""
    return stepper(name, size, noise(clip, batch_seconds))


def at(clip: float, given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one length of clip, and what else was found out."""
    batch = noise(clip, given.batch_seconds)
    audio = batch.seconds
    took = in_turns({name: stepper(name, given.size, batch) for name in NAMES}, given.rounds)
    memory = {
        name: [peak_memory(partial(fresh, name, given.size, clip, given.batch_seconds))]
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
        rows.append(Row(f"step on {clip:g} s clips, beside 35 % of 790 TFLOP/s", goal_ratio=1.0,
                        ours=took["ours"], theirs=at_goal))  # fmt: skip
    return rows, {"clip_seconds": clip, "batch_audio_seconds": audio,
                  "flop_per_second_6ND": round(operations / median(took["ours"]))}  # fmt: skip


def main() -> None:
    """Measure, print the table, write bench/results/train_step.json."""
    on_gpu = device().type == "cuda"
    parser = argument_parser("train_step", __doc__, tiny="the smallest sizes; nothing written")
    parser.add_argument("--size", choices=SHAPES, default="base" if on_gpu else "small")
    parser.add_argument("--clips", type=float, nargs="+", default=[16.0, 35.0, 120.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-seconds", type=float, default=960.0 if on_gpu else 64.0)
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
