"""Write down what is said in audio that nobody has transcribed: a model's texts, or any system's.

Texts that are not sure enough are left out. The manifest that comes of it is learned from like any
other; rounds are steps: train, pseudo_labels, train.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from jobs.job import Job
from jobs.kinds._inference import counter, device
from jobs.pipeline import Present, Resources
from lact_asr.config.base import Frozen
from lact_asr.config.precision import MEANING, Precision
from lact_asr.utils.errors import Failed

if TYPE_CHECKING:
    from distill.pseudo_labels import Guess
    from lact_asr.data.manifest import Utterance

RESOURCES = Resources(time="4h", cpus=4, memory_gb=32)


class Settings(Frozen):
    """Which audio, who hears it, and what is believed."""

    manifest: Path | None = Field(None, description="the audio: its texts are not looked at")
    audio: Annotated[Path | None, Present()] = Field(
        None, description="the audio, in place of a manifest: a folder of recordings"
    )
    checkpoint: Path | None = Field(None, description="the model that hears it, of any family")
    transcripts: Path | None = Field(
        None,
        description="the texts of any other system, in place of a checkpoint: a JSON object a line "
        "with id, text and perhaps confidence, 0 to 1; such as `hypotheses` of `evaluate`",
    )
    least_confidence: float = Field(
        0.8,
        ge=0,
        le=1,
        description="a text less sure is left out; of a model, the probability of its best path "
        "per symbol (0.95 is a few words wrong in a hundred; look at confidences.jsonl)",
    )
    beside: Path | None = Field(
        None, description="manifest of transcribed speech that is put in front of what comes of it"
    )
    batch_seconds: float = Field(320.0, gt=0, description="padded audio of a batch, seconds")
    precision: Precision = Field("auto", description=f"arithmetic of the model: {MEANING}")

    @model_validator(mode="after")
    def _one_of_each(self) -> "Settings":
        if (self.manifest is None) == (self.audio is None):
            raise ValueError("write manifest or audio, one of the two")
        if (self.checkpoint is None) == (self.transcripts is None):
            raise ValueError("write checkpoint or transcripts, one of the two")
        return self


class Result(Frozen):
    """What was believed."""

    manifest: Path = Field(description="utterances with their texts, those of `beside` in front")
    utterances: int = Field(description="of them, how many were labelled here")
    hours: float = Field(description="of audio labelled here")
    doubtful: int = Field(description="left out: less sure than least_confidence")
    silent: int = Field(description="left out: nothing was heard")
    unknown: int = Field(description="left out: no text was given, or the audio cannot be read")


def run(settings: Settings, job: Job) -> Result:
    """Hear, choose, write."""
    from distill.pseudo_labels import choose
    from lact_asr.data.manifest import read_manifest, write_manifest

    if job.world_size > 1:
        raise Failed("settings", "pseudo_labels runs as one process: write nodes: 1, gpus: 0 or 1")
    utterances = _utterances(settings)
    guesses = _guesses(settings, utterances, job)
    found = choose(utterances, guesses, settings.least_confidence)
    if not found.utterances:
        raise Failed(
            "bad_data",
            f"of {len(utterances)} utterances {len(found.doubtful)} are less sure than "
            f"{settings.least_confidence:g}, in {len(found.silent)} nothing was heard, of "
            f"{len(found.unknown)} nothing is known: none is left to learn from",
        )
    beside = read_manifest(settings.beside) if settings.beside else []
    path = job.directory / "data" / "pseudo.jsonl"
    job.fence()
    write_manifest(path, [*beside, *found.utterances])
    return Result(
        manifest=path,
        utterances=len(found.utterances),
        hours=round(sum(each.duration for each in found.utterances) / 3600, 4),
        doubtful=len(found.doubtful),
        silent=len(found.silent),
        unknown=len(found.unknown),
    )


def _utterances(settings: Settings) -> "list[Utterance]":
    from distill.pseudo_labels import find_audio
    from lact_asr.data.manifest import read_manifest

    if settings.audio:
        return find_audio(settings.audio)
    assert settings.manifest is not None
    return read_manifest(settings.manifest)


def _guesses(settings: Settings, utterances: "list[Utterance]", job: Job) -> "dict[str, Guess]":
    """The texts of all; those of a model, and how sure it is, are kept in confidences.jsonl."""
    import json

    from distill.models.registry import FAMILIES
    from distill.pseudo_labels import listen, read_guesses
    from lact_asr.training import checkpoint
    from lact_asr.utils.files import write_atomic

    if settings.transcripts:
        return read_guesses(settings.transcripts)
    assert settings.checkpoint is not None
    model, vocabulary, _ = checkpoint.load_model(checkpoint.find(settings.checkpoint), FAMILIES)
    guesses, unreadable = listen(
        model,
        vocabulary,
        utterances,
        batch_seconds=settings.batch_seconds,
        device=device(job),
        precision=settings.precision,
        progress=counter(job, len(utterances)),
    )
    for identity, why in unreadable.items():
        print(f"Left out utterance {identity}: {why}", flush=True)
    rows = ({"id": key, **guess._asdict()} for key, guess in guesses.items())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    job.fence()
    write_atomic(job.directory / "confidences.jsonl", lines)
    return guesses
