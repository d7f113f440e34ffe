"""Train a recognizer on transcribed speech, with CTC.

The best checkpoint by WER on the dev utterances is the result. Killed or preempted, the step goes
on from its newest checkpoint; on several GPUs every one takes its share of each batch.
"""

from typing import Any, Literal

from pydantic import Field

from jobs.job import Job
from jobs.kinds import _training
from jobs.pipeline import Resources

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(_training.CTCSettings):
    """Which model, on what, and how."""

    family: Literal["lact", "baseline"] = Field(
        "lact", description="lact is the recognizer; baseline a plain convolutional network"
    )
    size: str = _training.size_field("lact", "baseline")
    model: dict[str, Any] = _training.changes_field("lact", "baseline")


class Result(_training.Trained):
    """The trained recognizer."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    return Result(**_training.learn(settings, job).model_dump())
