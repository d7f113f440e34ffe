"""The test-time-training operator by itself: achieved FLOP/s of every schedule, beside the roof.

    python -m bench.ttt_op [--rows 16] [--tokens 375] [--width 128] [--rounds 7]

Per token and row (utterance x head) of width d reading takes 6 d^2 operations and learning 12 d^2;
Newton-Schulz takes 90 d^3 per update; backward counts as twice forward. An unfused product of C
tokens with a d x d matrix does d C / (d + 2 C) operations per byte in bf16, half of that in fp32:
the roof is that times the measured bandwidth, or the measured matrix product if lower. (On a CPU
whose caches hold the operands the bandwidth is no bound, and the matrix product is always lower.)
The goal is half the roof for reading and learning without Newton-Schulz, forward.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.harness import Row, argument_parser, rounds, show, write
from bench.machine import bandwidth, device, machine, matmul_peak, precision, seconds
from lact_asr.model.ttt import Schedule, test_time_training


@dataclass(frozen=True)
class Case:
    """One way to call the operator."""

    name: str
    schedule: Schedule
    chunk: int | None = None
    orthogonalize: str | None = None

    def operations(self, rows: int, tokens: int, width: int) -> float:
        """Floating-point operations forward."""
        size = self.chunk or tokens
        updates = -(-tokens // size)
        learned = tokens
        if self.schedule == "apply_then_update":  # the last chunk is read only
            updates -= 1
            learned = updates * size
        stages = 90 * updates * width**3 if self.orthogonalize else 0
        return rows * (6 * tokens * width**2 + 12 * learned * width**2 + stages)


def cases(chunk: int) -> list[Case]:
    """Every schedule, and orthogonalized updates."""
    return [
        Case("set", "set"),
        Case(f"update_then_apply, chunks of {chunk}", "update_then_apply", chunk),
        Case(f"apply_then_update, chunks of {chunk}", "apply_then_update", chunk),
        Case("set, five_stage", "set", None, "five_stage"),
    ]


def inputs(rows: int, tokens: int, width: int) -> list[Tensor]:
    """Weights, q, k, v and step sizes, all with gradients."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    weights = [random(rows, width, width) / width**0.5 for _ in range(3)]
    kind = torch.bfloat16 if precision() == "bf16" else torch.float32
    q, k = (torch.nn.functional.normalize(random(rows, tokens, width), dim=-1) for _ in range(2))
    tokens_ = [x.to(kind) for x in (q, k, random(rows, tokens, width))]
    rates = [random(rows, tokens, 1).sigmoid() * 0.01 for _ in range(3)]
    return [x.to(device()).requires_grad_() for x in (*weights, *tokens_, *rates)]


def forward(case: Case, given: list[Tensor]) -> Callable[[], object]:
    """The operator without a graph."""

    def work() -> None:
        with torch.no_grad():
            _call(case, given)

    return work


def both(case: Case, given: list[Tensor]) -> Callable[[], object]:
    """Forward and backward."""
    return lambda: torch.autograd.grad(_call(case, given).float().sum(), given)


def _call(case: Case, given: list[Tensor]) -> Tensor:
    return test_time_training(
        *given,
        schedule=case.schedule,
        chunk_size=case.chunk,
        orthogonalize=case.orthogonalize,
    )[0]


class Bench:
    """The cases, and the speed of the machine in the same rounds."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.peaks: list[float] = []
        size = (given.rows, given.tokens, given.width)
        tensors = inputs(*size)
        self.measured: list[tuple[Row, float, Callable[[], object]]] = []
        for case in cases(given.chunk):
            operations = case.operations(*size)
            goal = None if case.orthogonalize else 2.0
            self._add(f"{case.name}, forward", operations, goal, forward(case, tensors))
            self._add(
                f"{case.name}, forward and backward", 3 * operations, None, both(case, tensors)
            )
        self.bytes = bandwidth(1 << 20 if given.tiny else None)
        kind = 2 if precision() == "bf16" else 4  # bytes of a number
        intensity = 2 / kind * given.width * given.tokens / (given.width + 2 * given.tokens)
        self.reach = intensity * self.bytes  # FLOP/s that the memory could feed

    def _add(self, what: str, operations: float, goal: float | None, work: Any) -> None:
        work()
        self.measured.append((Row(what, goal_ratio=goal), operations, work))

    def roof(self) -> float:
        """FLOP/s the machine reaches at this moment, at the most."""
        self.peaks.append(matmul_peak(128 if self.given.tiny else None))
        return min(self.peaks[-1], self.reach)

    def run(self) -> list[Row]:
        """All rounds; theirs is the time at the roof, measured in the same round."""

        def one(row: Row, operations: float, work: Callable[[], object]) -> None:
            row.theirs.append(operations / self.roof())
            row.ours.append(seconds(work))

        turns = [lambda each=each: one(*each) for each in self.measured]
        rounds(self.given.rounds, *turns)
        return [row for row, _, _ in self.measured]


def main() -> None:
    """Measure, print the table, write bench/results/ttt_op.json."""
    on_gpu = device().type == "cuda"
    parser = argument_parser("ttt_op", __doc__, tiny="the smallest sizes; nothing written")
    parser.add_argument(
        "--rows", type=int, default=256 if on_gpu else 16, help="utterances x heads"
    )
    parser.add_argument("--tokens", type=int, default=375, help="per row: 15 s")
    parser.add_argument("--width", type=int, default=128, help="of a fast head")
    parser.add_argument("--chunk", type=int, default=128, help="of the chunked schedules, tokens")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.tiny:
        given.rows, given.tokens, given.width, given.chunk, given.rounds = 2, 24, 8, 8, 1
    torch.set_num_threads(1)
    bench = Bench(given)
    rows = bench.run()
    show(f"{given.rows} rows of {given.tokens} tokens, width {given.width}, beside the roof", rows)
    achieved = {row.what: o / median(row.ours) for row, o, _ in bench.measured}
    for what, rate in achieved.items():
        print(f"{what}: {rate / 1e9:.3g} GFLOP/s")
    peak = median(bench.peaks)
    print(f"matrix product {peak / 1e9:.3g} GFLOP/s, memory {bench.bytes / 1e9:.3g} GB/s")
    if not given.tiny:
        shape = {name: getattr(given, name) for name in ("rows", "tokens", "width", "chunk")}
        path = write(
            "ttt_op",
            rows,
            ran_on=machine(),
            shape=shape,
            matmul_flop_per_second=round(peak),
            bytes_per_second=round(bench.bytes),
            flop_per_second={name: round(rate) for name, rate in achieved.items()},
        )
        print(f"written to {path}")


if __name__ == "__main__":
    main()
