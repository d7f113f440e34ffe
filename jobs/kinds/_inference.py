"""What the kinds that take a checkpoint to some audio share: which model, which utterances."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from jobs.job import Job
from lact_asr.config.base import Frozen
from lact_asr.utils.errors import DataError

if TYPE_CHECKING:
    import torch

    from lact_asr.data.manifest import Utterance


class ListeningSettings(Frozen):
    """A checkpoint, and a manifest or audio files."""

    checkpoint: Path = Field(description="a checkpoint, or the folder of the step that made it")
    manifest: Path | None = Field(None, description="utterances with or without texts")
    audio: list[Path] = Field([], description="audio files, in place of a manifest")

    @model_validator(mode="after")
    def _one_source(self) -> "ListeningSettings":
        if bool(self.audio) == bool(self.manifest):
            raise ValueError("write either manifest: FILE or audio: [FILE, ...]")
        return self


def utterances(settings: ListeningSettings) -> "list[Utterance]":
    """All of them; those of bare audio files have no text. DataError with all unreadable ones."""
    from lact_asr.data.audio import duration
    from lact_asr.data.manifest import Utterance, raise_all, read_manifest

    if settings.manifest:
        return read_manifest(settings.manifest)
    found, mistakes = list[Utterance](), list[str]()
    for path in settings.audio:
        try:
            found.append(Utterance(str(path), path, duration(path), "", ""))
        except DataError as error:
            mistakes.append(str(error))
    raise_all(mistakes)
    return found


def device(job: Job) -> "torch.device":
    """This process's GPU, or the CPU."""
    from lact_asr.distributed.processes import World

    return World(job.rank, job.world_size, job.local_rank).device()


def counter(job: Job, total: int, ranks: int = 1) -> Callable[[float], None]:
    """What is told how many utterances more are done, and reports how many of `total` are: as many
    times more as there are ranks, for the share of one stands for all.
    """
    done = 0

    def progress(more: float) -> None:
        nonlocal done
        done += int(more)
        job.report({"step": min(done * ranks, total), "total_steps": total})

    return progress
