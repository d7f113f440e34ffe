"""Take over a CTC model of another library as a teacher: wav2vec 2.0, HuBERT and their like.

From a local folder of transformers, or a state dict of torchaudio. What comes of it is a checkpoint
of this project: `cache`, `distill`, `evaluate` and `pseudo_labels` take it like any other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from jobs.job import Job
from jobs.pipeline import Present, Resources
from lact_asr.config.base import Frozen

if TYPE_CHECKING:
    from distill.models.foreign_files import Adopted

RESOURCES = Resources(time="30m", cpus=2, memory_gb=16)


class Settings(Frozen):
    """Which model."""

    folder: Annotated[Path | None, Present()] = Field(
        None,
        description="what `save_pretrained` of a transformers model and its processor wrote: "
        "safetensors, vocab.json; needs the package transformers, and so does every step that uses "
        "the teacher",
    )
    weights: Annotated[Path | None, Present()] = Field(
        None, description="a state dict of torchaudio's, in place of a folder"
    )
    bundle: str | None = Field(
        None,
        description="torchaudio's name of the model of these weights, such as "
        "WAV2VEC2_ASR_BASE_960H",
    )
    arguments: dict[str, Any] = Field(
        {}, description="of torchaudio's wav2vec2_model, for weights of no bundle"
    )
    labels: tuple[str, ...] = Field(
        (), description='what that model gives, in its order: "-" is the blank, "|" the space'
    )
    normalize: bool = Field(
        False, description="whether that model wants samples of mean 0 and variance 1"
    )
    upper: bool = Field(True, description="write letters large, as the texts here are")

    @model_validator(mode="after")
    def _one_model(self) -> "Settings":
        if (self.folder is None) == (self.weights is None):
            raise ValueError("write folder (transformers) or weights (torchaudio), one of the two")
        if self.weights and (self.bundle is None) == (not self.arguments):
            raise ValueError("weights go with a bundle, or with arguments and labels")
        return self


class Result(Frozen):
    """The teacher."""

    checkpoint: Path = Field(description="folder of the checkpoint")
    symbols: int = Field(description="symbols that it writes with, and the blank")
    unused: list[str] = Field(description="symbols of its own that no text here has")
    frame_rate: float = Field(description="frames a second")
    layers: int = Field(description="hidden layers that it gives")
    parameters: int = Field(description="numbers that the model has learned")


def run(settings: Settings, job: Job) -> Result:
    """Read it and write a checkpoint."""
    from distill.losses.time_grid import frame_rate
    from lact_asr.config.training import TrainingConfig
    from lact_asr.model.interface import count_parameters
    from lact_asr.training import checkpoint

    model, vocabulary, unused = _read(settings)
    contents = {
        checkpoint.WEIGHTS: model.state_dict(),
        checkpoint.CONFIG: checkpoint.describe(model, vocabulary, TrainingConfig()),
        checkpoint.STATE: {"step": 0},
    }
    folder = job.directory / "checkpoints"
    if job.rank == 0:
        checkpoint.save(folder, checkpoint.BEST, contents, job.fence)
    return Result(
        checkpoint=folder / checkpoint.BEST,
        symbols=len(vocabulary),
        unused=unused,
        frame_rate=round(frame_rate(model), 3),
        layers=model.config.blocks,
        parameters=count_parameters(model),
    )


def _read(settings: Settings) -> "Adopted":
    from distill.models import foreign_files

    if settings.folder:
        return foreign_files.from_transformers(settings.folder, settings.upper)
    assert settings.weights is not None
    arguments, labels, normalize = settings.arguments, list(settings.labels), settings.normalize
    if settings.bundle:
        arguments, labels, normalize = foreign_files.bundle(settings.bundle)
    return foreign_files.from_torchaudio(
        settings.weights, arguments, labels, normalize=normalize, upper=settings.upper
    )
