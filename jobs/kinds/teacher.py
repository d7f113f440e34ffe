"""Train a teacher for distillation: an inflated-Inception trunk, pitch, attention over time, CTC.

Like `train`, for the teacher's family of models. `distill` then teaches a smaller model with it.
"""

from typing import Any, Literal

from pydantic import Field

from jobs import learning
from jobs.job import Job
from jobs.spec import Resources

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(learning.CTCSettings):
    """Which teacher, on what, and how."""

    family: Literal["teacher"] = Field("teacher", description="the teacher's family of models")
    size: str = learning.size_field("teacher")
    model: dict[str, Any] = learning.changes_field("teacher")


class Result(learning.Trained):
    """The trained teacher."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    from lact_asr.objective import CTCObjective

    parts = learning.utterances(settings)
    vocabulary = learning.vocabulary(settings, parts[0], job)
    model = learning.fresh_model(settings, vocabulary, parts[0])
    objective = CTCObjective(model, settings.ctc)
    trained = learning.fit(objective, settings, parts, vocabulary, job)
    return Result(**trained.model_dump())
