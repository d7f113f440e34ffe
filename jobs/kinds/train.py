"""Train a recogniser on transcribed speech, with CTC.

The best checkpoint by WER on the dev utterances is the result. Killed or preempted, the step goes
on from its newest checkpoint; on several GPUs every one takes its share of each batch.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from jobs import learning
from jobs.job import Job
from jobs.spec import Resources
from lact_asr.config import OptimConfig, TrainingConfig

RESOURCES = Resources(time="12h", cpus=4, memory_gb=32)

# Batches of 12 utterances of up to 20 s; the notes' loss table ends at 100,000 steps.
FOUNDING: dict[str, Any] = {
    "max_steps": 100_000,
    "batch_seconds": 240.0,
    "accumulate": 2,
    "max_duration": 20.0,
    "valid_every": 1000,
    "checkpoint_every": 5000,
    "precision": "fp32",
}
FOUNDING_OPTIM = {"learning_rate": 1e-4, "warmup_steps": 2000, "decay": "constant"}


class Settings(learning.TrainingSettings):
    """Which model, on what, and how."""

    family: Literal["lact", "baseline"] = Field(
        "lact", description="lact is the recogniser; baseline a plain convolutional network"
    )
    size: str = learning.size_field("lact", "baseline")
    model: dict[str, Any] = learning.changes_field("lact", "baseline")
    preset: Literal["modern", "founding"] = Field(
        "modern",
        description="what `training` leaves open: modern is the defaults; founding the project's "
        "first recipe (24 utterances a step, peak learning rate 1e-4, float32, 100,000 steps)",
    )

    @model_validator(mode="after")
    def _preset(self) -> "Settings":
        if self.preset == "founding":
            given = self.training.model_dump(exclude_unset=True)
            optim = {**FOUNDING_OPTIM, **given.pop("optim", {})}
            training = TrainingConfig(**{**FOUNDING, **given}, optim=OptimConfig(**optim))
            object.__setattr__(self, "training", training)  # frozen for everybody else
        return self


class Result(learning.Trained):
    """The trained recogniser."""


def run(settings: Settings, job: Job) -> Result:
    """Train, or go on training."""
    from lact_asr.objective import CTCObjective
    from lact_asr.text import Vocabulary

    vocabulary = Vocabulary.characters()
    parts = learning.utterances(settings)
    model = learning.fresh_model(settings, vocabulary, parts[0])
    trained = learning.fit(CTCObjective(model), settings, parts, vocabulary, job)
    return Result(**trained.model_dump())
