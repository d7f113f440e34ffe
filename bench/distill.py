"""A student's training step with its teacher running beside it, and with the teacher's cache.

    python -m bench.distill [--pairs mini_librispeech librispeech_base] [--clip 15] [--rounds 5]

The pairs are the teachers and students of those pipelines (random weights: time does not depend on
them). Both ways take the step of `lact_asr.training.train_step` on the same noise, in turns; the
cache is filled before, on disk, and read inside the step. Peak memory is that of one step in a
fresh process, above what Python and torch take. On a GPU: bf16, wall time, and --batch-seconds as
in the pipelines; without one: processor time of one thread.
"""

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch

from bench.harness import Row, argument_parser, show, write
from bench.machine import device, machine, precision, seconds
from bench.steps import Stepper, in_turns, noise, peak_memory
from distill.cache.filling import fill, form_of, identity
from distill.cache.teacher import Cached
from distill.config import models as distill_config
from distill.config.distillation import DistillConfig
from distill.config.models import TeacherConfig
from distill.models.registry import FAMILIES
from distill.objective import DistillObjective
from distill.teachers import Live, Source
from lact_asr.config import model as lact_config
from lact_asr.config.model import ModelConfig
from lact_asr.data.audio import RATE
from lact_asr.data.batch import Batch
from lact_asr.data.manifest import Utterance
from lact_asr.distributed.processes import World
from lact_asr.model.interface import CTCModel, count_parameters
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.characters()
WAYS = ("cached", "live")


@dataclass(frozen=True)
class Pair:
    """Who teaches whom."""

    teacher: TeacherConfig
    student: ModelConfig
    goal: float | None  # of the step with the cache, as a share of that with the teacher


PAIRS = {
    "mini_librispeech": Pair(
        distill_config.named_size("teacher", "tiny", {"hidden": 256, "mlp": 1024}),
        lact_config.named_size("tiny", {"hidden": 256, "layers": 6, "lact_heads": 4, "mlp": 768}),
        None,  # a teacher smaller than its student: a fifth of the step is all there is to save
    ),
    "librispeech_base": Pair(
        distill_config.named_size("teacher", "default", {}),
        lact_config.named_size("base", {"hidden": 384, "attention_heads": 6, "mlp": 1152}),
        0.5,
    ),
}


def teacher(pair: Pair) -> CTCModel:
    """The teacher with its first weights."""
    torch.manual_seed(0)
    return FAMILIES["teacher"](pair.teacher.model_dump(), len(VOCABULARY)).eval()


def cache(folder: Path, pair: Pair, lesson: Batch) -> None:
    """Fill the folder with what the teacher says of the batch."""
    spoken = []
    for name, wave, samples in zip(lesson.ids, lesson.waves, lesson.wave_lengths, strict=True):
        path = folder / f"{name}.wav"
        soundfile.write(path, wave[:samples].numpy(), RATE, subtype="FLOAT")
        spoken.append(Utterance(name, path, int(samples) / RATE, "", ""))
    model = teacher(pair)
    form = form_of(
        model, VOCABULARY, kept=16, temperatures=[2.0], hidden="none", precision=precision()
    )
    fill(
        folder, model, VOCABULARY, spoken, form,
        speeds=[1.0], batch_seconds=lesson.seconds, world=World(), device=device(),
        report=print, should_stop=lambda: False,
    )  # fmt: skip


def source(way: str, folder: Path, pair: Pair) -> Source:
    """The teacher, or its cache."""
    model = teacher(pair)
    if way == "live":
        return Live(model, VOCABULARY)
    return Cached(folder, identity(model, VOCABULARY))


def stepper(way: str, folder: Path, pair: Pair, lesson: Batch) -> Stepper:
    """A student that takes training steps."""
    torch.manual_seed(1)
    student = Recognizer(pair.student, len(VOCABULARY)).to(device()).train()
    teaching = source(way, folder, pair)
    objective = DistillObjective(student, teaching, DistillConfig(), vocabulary=VOCABULARY)
    return Stepper(objective, lesson, progress=0.5)


def fresh(way: str, folder: Path, pair: Pair, clip: float, batch_seconds: float) -> Stepper:
    """The same on a batch of its own, for another process."""
    return stepper(way, folder, pair, noise(clip, batch_seconds))


def compared(name: str, given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one pair, and its sizes."""
    pair, lesson = PAIRS[name], noise(given.clip, given.batch_seconds)
    sizes = (given.clip, given.batch_seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache(folder, pair, lesson)
        took = in_turns({way: stepper(way, folder, pair, lesson) for way in WAYS}, given.rounds)
        reading = _reading(folder, pair, lesson, given.rounds)
        size = sum(path.stat().st_size for path in folder.glob("*.bin"))
        memory = {way: [peak_memory(partial(fresh, way, folder, pair, *sizes))] for way in WAYS}
    rows = [
        Row(f"{name}: step", goal_ratio=pair.goal, ours=took["cached"], theirs=took["live"]),
        Row(f"{name}: share of the step that reads", unit="share", goal=0.05,
            ours=[a / b for a, b in zip(reading, took["cached"], strict=True)]),
        Row(f"{name}: peak memory", "GiB", goal_ratio=1.0,
            ours=memory["cached"], theirs=memory["live"]),
    ]  # fmt: skip
    return rows, {
        "teacher_parameters": count_parameters(teacher(pair)),
        "student_parameters": count_parameters(Recognizer(pair.student, len(VOCABULARY))),
        "cache_bytes_per_second_of_audio": round(size / lesson.seconds),
    }


def _reading(folder: Path, pair: Pair, lesson: Batch, times: int) -> list[float]:
    """Seconds that reading the batch takes, from the page cache."""
    read, batch = source("cached", folder, pair), lesson.to(device())
    return [seconds(lambda: read(batch, 2.0)) for _ in range(times)]


def main() -> None:
    """Measure, print the table, write bench/results/distill.json."""
    parser = argument_parser("distill", __doc__)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--clip", type=float, default=15.0, help="seconds of an utterance")
    parser.add_argument("--batch-seconds", type=float, default=30.0, help="audio of a step")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, pairs = [], {}
    for name in given.pairs:
        more, pairs[name] = compared(name, given)
        rows += more
    show(f"one step of {given.batch_seconds:g} s of audio: cache against running teacher", rows)
    path = write(
        "distill", rows, ran_on=machine(), pairs=pairs, clip_seconds=given.clip,
        batch_seconds=given.batch_seconds,
    )  # fmt: skip
    print(f"written to {path}")


if __name__ == "__main__":
    main()
