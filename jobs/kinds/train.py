"""Train a recogniser on transcribed speech, with CTC.

The best checkpoint by WER on the dev utterances is the result. Killed or preempted, the step goes
on from its newest checkpoint; on several GPUs every one takes its share of each batch.
"""

from typing import Any, Literal

from pydantic import Field

from jobs import learning
from jobs.job import Job
from jobs.spec import Resources

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)


class Settings(learning.CTCSettings):
    """Which model, on what, and how."""

    family: Literal["lact", "baseline"] = Field(
        "lact", description="lact is the recogniser; baseline a plain convolutional network"
    )
    size: str = learning.size_field("lact", "baseline")
    model: dict[str, Any] = learning.changes_field("lact", "baseline")


class Result(learning.Trained):
    """The trained recogniser."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    return Result(**learning.learn(settings, job).model_dump())
