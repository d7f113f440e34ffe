"""Run a teacher over utterances once and keep what it says: fills the folder of
`distill.cache.format`.

Every utterance is heard whole and alone in its frames (padding has no effect on any model here), at
each wanted speed. Called again after a kill, it goes on with what is missing, on any number of
processes.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.cache.format import (
    Form,
    Hidden,
    Writer,
    open_cache,
    pack_record,
    read_index,
    round_parts,
)
from distill.cache.loudness import loudness
from distill.config.kept import kept_symbols, kept_temperatures
from distill.losses.time_grid import frame_rate
from distill.teachers import widths
from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import by_length
from lact_asr.data.dataset import whole_corpus
from lact_asr.data.loader import default_workers, loader
from lact_asr.data.manifest import Utterance
from lact_asr.data.speed import change_speed
from lact_asr.distributed.processes import World
from lact_asr.model.features import VERSION as FEATURES
from lact_asr.model.forward import autocast, forward_batch
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError, Interrupted
from lact_asr.utils.locks import no_fence

FLUSH = 60.0  # seconds of work that a kill may cost
TELL = 10.0  # seconds between reports


@dataclass(frozen=True)
class Filled:
    """What a call of `fill` came to."""

    records: int  # in the folder, of all calls and processes
    unreadable: dict[str, str]  # utterances without a record, and why


def form_of(
    teacher: CTCModel,
    vocabulary: Vocabulary,
    *,
    kept: int,
    temperatures: Sequence[float],
    hidden: Hidden,
    precision: str,
) -> Form:
    """What a cache of this teacher holds; small vocabularies are kept whole, for any `kept`."""
    size, every = len(vocabulary), list(widths(teacher))
    return Form(
        **identity(teacher, vocabulary),
        symbols=size,
        kept=kept_symbols(size, kept),
        temperatures=kept_temperatures(size, temperatures),
        hidden=hidden,
        widths=[] if hidden == "none" else every if hidden == "all" else every[-1:],
        precision=precision,
    )


def identity(teacher: CTCModel, vocabulary: Vocabulary) -> dict[str, Any]:
    """The part of a form that says whose words are kept."""
    return {
        "weights": weights_hash(teacher),
        "family": teacher.family,
        "model": teacher.config.model_dump(mode="json"),
        "vocabulary": vocabulary.to_dict(),
        "frame_rate": frame_rate(teacher),
        "features": FEATURES,
    }


def weights_hash(model: nn.Module) -> str:
    """A name for a model's weights: sha256 of names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fill(
    folder: Path,
    teacher: CTCModel,
    vocabulary: Vocabulary,
    utterances: Sequence[Utterance],
    form: Form,
    *,
    speeds: Sequence[float],
    batch_seconds: float,
    world: World,
    device: torch.device,
    report: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], bool],
    fence: Callable[[], None] = no_fence,
) -> Filled:
    """Write what is missing; every process calls it with the same arguments.

    Interrupted, with the number of records, where `should_stop()` says so on any process.
    DataError if the folder holds another form, or the teacher says something that is not finite.
    `fence` is called before records are written, and raises where newer processes have taken over.
    """
    if world.main:
        open_cache(folder, form)
    world.gather(None)
    done = read_index(folder)
    teacher.to(device).eval()
    shards = Writer(folder, world.rank, fence)
    writer = _Timed(shards, report, len(done), len(utterances) * len(speeds))
    unreadable: dict[str, str] = {}
    stopped = False
    for speed in speeds:
        left = [each for each in utterances if (each.id, speed) not in done]
        batches = _read(
            left, vocabulary, teacher.video_shape, batch_seconds * min(speed, 1.0), world, device
        )
        for batch in batches:
            unreadable |= dict(batch.unreadable)
            if len(batch):
                writer.add(
                    _ask_teacher(teacher, change_speed(batch.to(device), speed), form, device)
                )
            stopped = stopped or should_stop()
            if stopped:
                break
    writer.flush()
    stopped = world.all_max(stopped)
    every = {key: why for part in world.gather(unreadable) for key, why in part.items()}
    records = len(read_index(folder))
    if stopped:
        raise Interrupted(records)
    return Filled(records, every)


def _read(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    shape: tuple[int, ...] | None,
    batch_seconds: float,
    world: World,
    device: torch.device,
) -> Iterable[Batch]:
    """This process's share, in batches of similar length."""
    corpus = whole_corpus(utterances, vocabulary, shape)
    mine = world.share(by_length(corpus.durations, batch_seconds))
    return loader(corpus, mine, min(default_workers(device), len(mine)))


class _Record:
    """One utterance, ready to be written."""

    def __init__(
        self, batch: Batch, row: int, parts: Mapping[str, Any], loud: Sequence[int], form: Form
    ) -> None:
        self.key = (batch.ids[row], batch.speed)
        self.samples, self.loudness = int(batch.wave_lengths[row]), loud
        self.frames = len(parts["scores"])
        rows = round_parts(parts, form)
        if not all(np.isfinite(row).all() for row in rows.values()):
            raise DataError(
                f"the teacher's output on {self.key[0]} is not finite, or too large for float16: "
                "nothing can be learned from it. `diagnose` says where that comes from"
            )
        self.data = pack_record(rows, form)


@torch.no_grad()
def _ask_teacher(
    teacher: CTCModel, batch: Batch, form: Form, device: torch.device
) -> list[_Record]:
    """What the teacher says of each utterance of a batch."""
    with autocast(device, form.precision):
        output = forward_batch(teacher, batch)
    parts = {name: part.cpu().numpy() for name, part in kept_columns(output, form).items()}
    loud = loudness(batch.waves, batch.wave_lengths.tolist())
    return [
        _Record(
            batch, row, {name: part[row, :frames] for name, part in parts.items()}, loud[row], form
        )
        for row, frames in enumerate(output.lengths.tolist())
    ]


def kept_columns(output: CTCOutput, form: Form) -> dict[str, Tensor]:
    """[B,T,columns] of each part of the form, before rounding to its type."""
    scores = output.log_probs - output.log_probs.amax(-1, keepdim=True)
    parts = {"scores": scores}
    if not form.whole:
        best = scores.topk(form.kept, dim=-1)
        norms = [(scores / tau).logsumexp(-1) for tau in form.temperatures]
        parts = {"ids": best.indices, "norms": torch.stack(norms, -1), "scores": best.values}
    if form.widths:
        states = output.hidden[-len(form.widths) :]
        parts["hidden"] = torch.cat([each.float() for each in states], dim=-1)
    return parts


class _Timed:
    """A writer that writes, and reports, every so often."""

    def __init__(
        self,
        writer: Writer,
        report: Callable[[Mapping[str, Any]], None],
        done: int,
        total: int,
    ) -> None:
        self.writer, self.report, self.done, self.total = writer, report, done, total
        self.wrote = self.told = time.monotonic()

    def add(self, records: Sequence[_Record]) -> None:
        """Take the records of a batch."""
        for record in records:
            self.writer.add(record.key, record.data, record.frames, record.samples, record.loudness)
        self.done += len(records)
        now = time.monotonic()
        if now - self.wrote > FLUSH:
            self.flush()
        if now - self.told > TELL:
            self.told = now
            self.report({"utterances": self.done, "total": self.total})

    def flush(self) -> None:
        """Write what has been taken."""
        self.writer.flush()
        self.wrote = time.monotonic()
