"""Train a teacher for distillation: an inflated-Inception trunk, pitch, attention over time, CTC.

Like `train`, for the teacher's family of models. `distill` then teaches a smaller model with it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from distill.config.presets import TEACHER
from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Resources

Preset = Literal["recommended", "standard", "emergency", "plain"]
RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(_training.CTCSettings):
    """Which teacher, on what, and how."""

    family: Literal["teacher"] = Field("teacher", description="the teacher's family of models")
    size: str = _training.size_field("teacher")
    model: dict[str, Any] = _training.changes_field("teacher")
    preset: Preset = Field(  # type: ignore[assignment]  # names of its own
        "recommended",
        description="what completes `training` and `model`: recommended is learning rate 1e-4 "
        "after 2,000 steps of warm-up, steps of 10 times the usual gradient norm dropped, early "
        "stopping after 20 validations, augmentation, bfloat16 on GPUs; standard and emergency are "
        "the original two stable recipes (batch norm, two utterances a step, a clamp on the "
        "attention's output; 1e-4 and clipping at 1, then 1e-5, clipping at 0.5 and steps above a "
        "norm of 10 dropped: docs/origin.md); plain adds nothing. What is in force: "
        "`kinds teacher --preset PRESET`",
    )

    def recipe(self) -> Mapping[str, Any]:
        """What the preset says about `training`."""
        return TEACHER[self.preset]["training"]

    def shape(self) -> Mapping[str, Any]:
        """What the preset says about `model`."""
        return TEACHER[self.preset]["model"]

    def configuration(self, **changes: object) -> Any:
        """The teacher's own configuration: the preset's, then what is written, then `changes`."""
        return super().configuration(**{**self.shape(), **self.model, **changes})


class Result(_training.Trained):
    """The trained teacher."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    return Result(**_training.learn(settings, job).model_dump())
