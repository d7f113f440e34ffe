"""What the kinds that take a checkpoint to some audio share: which model, which utterances."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from lact_asr.config.base import Frozen

if TYPE_CHECKING:
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
    """All of them; those of bare audio files have no text."""
    from lact_asr.data.audio import duration
    from lact_asr.data.manifest import Utterance, read_manifest

    if settings.manifest:
        return read_manifest(settings.manifest)
    return [Utterance(str(path), path, duration(path), "", "") for path in settings.audio]
