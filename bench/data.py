"""How much of bare decoding our batches keep: audio-seconds per second and core.

    python -m bench.data --data mini_librispeech/train-clean-5 [--rounds 5]

The same files in the same order: `soundfile.read` alone, and our loader, which reads, checks
lengths and samples, resamples where it must, pads, and adds the labels. In processor time, so that
a busy machine does not matter: within one process, and with worker processes whose batches travel
to the parent (the parent's own share included). The goal is 0.85 of bare decoding.

    python -m bench.data --data mini_librispeech/train-clean-5 --batches

measures the batches alone, for one rank and for four: the padding, the pairs of utterances of a
step that meet again in the next epoch, and what ranks wait for each other. Goals: 4 % and 15 %.
"""

import itertools
import resource
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from bench.harness import Row, argument_parser, rounds, show, write
from bench.machine import machine
from lact_asr.config.budget import Budget
from lact_asr.data.batch_plan import Plan, epoch_plan
from lact_asr.data.dataset import Corpus, whole_corpus
from lact_asr.data.librispeech import scan
from lact_asr.data.loader import loader
from lact_asr.text.vocabulary import Vocabulary

GOAL = 1 / 0.85  # processor time, ours / bare


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(work: Callable[[], None], into: list[float], hours: float) -> None:
    """Processor seconds per hour of audio."""
    began = cpu_seconds()
    work()
    into.append((cpu_seconds() - began) / hours)


def bare(paths: list[str]) -> None:
    """Decode the files, and nothing else."""
    for path in paths:
        soundfile.read(path, dtype="float32")


def ours(corpus: Corpus, batch_seconds: float, workers: int) -> None:
    """All batches of an epoch."""
    plan = epoch_plan(corpus.durations, Budget(batch_seconds), 0, 0, 1)[0]
    read = loader(corpus, plan, workers)
    assert sum(len(batch) for batch in read) == len(corpus)


def padding(plan: Plan, durations: NDArray[Any]) -> float:
    """Share of what a plan's batches hold that is no audio."""
    costs = _costs(plan, durations)
    taken = np.concatenate([batch for rank in plan for batch in rank])
    return float(1 - durations[taken].sum() / costs.sum())


def waiting(plan: Plan, durations: NDArray[Any]) -> float:
    """Share of the time that ranks wait for the largest batch of their step."""
    costs = _costs(plan, durations)
    return float(1 - costs.mean() / costs.max(0).mean())


def met_again(plan: Plan, following: Plan) -> float:
    """Share of the pairs of utterances in a step, on whatever ranks, that share one again."""
    steps, later = _steps(plan), _steps(following)
    where = np.empty(max(map(np.max, later)) + 1, dtype=np.int64)
    for number, step in enumerate(later):
        where[step] = number
    pairs = again = 0
    for step in steps:
        together = np.unique(where[step], return_counts=True)[1]
        pairs += len(step) * (len(step) - 1)
        again += int((together * (together - 1)).sum())
    return again / max(pairs, 1)


def _steps(plan: Plan) -> list[NDArray[Any]]:
    """The utterances of each step, over all ranks."""
    return [np.concatenate(batches) for batches in zip(*plan, strict=True)]


def _costs(plan: Plan, durations: NDArray[Any]) -> NDArray[Any]:
    """[ranks, steps] seconds with their padding."""
    return np.array([[len(batch) * durations[batch].max() for batch in rank] for rank in plan])


def show_batches(durations: NDArray[Any], batch_seconds: float) -> None:
    """One line for each number of ranks."""
    for ranks in (1, 4):
        first, second = (
            epoch_plan(durations, Budget(batch_seconds), 0, epoch, ranks) for epoch in (1, 2)
        )
        print(
            f"{len(durations):,} utterances, {batch_seconds:g} s a batch, ranks: {ranks}, "
            f"{len(first[0])} steps an epoch: padding {padding(first, durations):.1%}, "
            f"{met_again(first, second):.1%} of pairs meet again, "
            f"ranks wait {waiting(first, durations):.1%}"
        )


def main() -> None:
    """Measure, print the table, write bench/results/data.json."""
    parser = argument_parser("data", __doc__, tiny="a few files; nothing written")
    parser.add_argument("--data", type=Path, required=True, help="a folder in LibriSpeech layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=1500, help="a round; again if too few")
    parser.add_argument("--batch-seconds", type=float, default=320.0)
    parser.add_argument("--batches", action="store_true", help="the batches alone; nothing read")
    given = parser.parse_args()
    if given.tiny:
        given.rounds, given.utterances = 1, 8
    torch.set_num_threads(1)
    if given.batches:
        show_batches(np.array([each.duration for each in scan(given.data)]), given.batch_seconds)
        return
    found = itertools.cycle(scan(given.data))
    utterances = [
        replace(each, id=str(number))
        for number, each in enumerate(itertools.islice(found, given.utterances))
    ]
    corpus = whole_corpus(utterances, Vocabulary.characters())
    hours = float(corpus.durations.sum()) / 3600
    plan = epoch_plan(corpus.durations, Budget(given.batch_seconds), 0, 0, 1)[0]
    paths = [corpus.paths.text(index) for batch in plan for index in batch]
    inside = Row("processor time per hour of audio, in one process", goal_ratio=GOAL)
    beside = Row("processor time per hour of audio, 2 workers", goal_ratio=GOAL)
    run = partial(ours, corpus, given.batch_seconds)
    bare(paths)  # from disk into memory
    rounds(
        given.rounds,
        lambda: timed(lambda: bare(paths), inside.theirs, hours),
        lambda: timed(lambda: run(0), inside.ours, hours),
        lambda: timed(lambda: run(2), beside.ours, hours),
    )
    beside.theirs = inside.theirs
    kinds = sorted({each.audio.suffix for each in utterances})
    show(f"{len(utterances)} files {', '.join(kinds)}, {hours:.2f} h: median (least-most)",
         [inside, beside])  # fmt: skip
    measured = {"bare": inside.theirs, "ours": inside.ours, "ours, 2 workers": beside.ours}
    rates = {name: round(3600 / median(values)) for name, values in measured.items()}
    for name, rate in rates.items():
        share = rate / rates["bare"]
        print(f"{name}: {rate:,} s of audio per second and core, {share:.2f} of bare decoding")
    if not given.tiny:
        path = write(
            "data",
            [inside, beside],
            ran_on=machine(),
            files={"count": len(utterances), "kinds": kinds, "hours": round(hours, 3)},
            audio_seconds_per_second_and_core=rates,
        )
        print(f"written to {path}")


if __name__ == "__main__":
    main()
