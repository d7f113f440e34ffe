"""Train a student that learns from transcripts and from a trained teacher's outputs.

The student writes with the teacher's vocabulary. The teacher stays as it is.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distill.config import DistillConfig
from jobs import learning
from jobs.job import Job
from jobs.spec import Resources

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(learning.TrainingSettings):
    """Who teaches whom, on what, and how."""

    teacher: Path = Field(description="the teacher's checkpoint, of any family")
    family: Literal["lact", "baseline"] = Field("lact", description="model family of the student")
    size: str = learning.size_field("lact", "baseline")
    model: dict[str, Any] = learning.changes_field("lact", "baseline")
    distill: DistillConfig = Field(
        DistillConfig(), description="what is learned from the teacher, and how much it counts"
    )


class Result(learning.Trained):
    """The trained student."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    from distill.families import FAMILIES
    from distill.objective import DistillObjective
    from distill.sources import Live
    from lact_asr import checkpoint

    teacher, vocabulary, _ = checkpoint.load_model(checkpoint.find(settings.teacher), FAMILIES)
    parts = learning.utterances(settings)
    student = learning.fresh_model(settings, vocabulary, parts[0])
    source = Live(teacher, vocabulary)
    objective = DistillObjective(student, source, settings.distill, vocabulary=vocabulary)
    trained = learning.fit(objective, settings, parts, vocabulary, job)
    return Result(**trained.model_dump())
