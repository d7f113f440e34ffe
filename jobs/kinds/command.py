"""Run any program: its exit status is the result, a JSON file that it may write the details.

What people use sbatch for. The program gets the step's resources and these variables:
TRAINYARD_STEP (the step's folder), TRAINYARD_RESULT (where it may write a JSON object whose
entries later steps and the gate can refer to), TRAINYARD_POSITION (where it may write a number that
grows as it gets on; the file is still there when it is started again).

Before the time limit the program gets SIGUSR2 if `handles_warning` says that it can save its work.
Interrupted, and later started again, is a program that ends with status 75 after such a signal, or
that dies of the signal; any other bad status is a failure. One that meets its time limit three
times without a larger position is not started again.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator

from jobs.job import Job
from jobs.kinds import _external
from jobs.pipeline import Resources, check_variables
from lact_asr.config.base import Frozen

RESOURCES = Resources(time="1h", cpus=1, memory_gb=4)
_OURS = ("TRAINYARD_STEP", "TRAINYARD_RESULT", "TRAINYARD_POSITION")
Text = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value),
    WithJsonSchema({"type": ["string", "number"]}),
]


class Settings(Frozen):
    """What to run. Numbers become text: `argv: [sleep, 0.5]`, or a reference to a number."""

    argv: list[Text] = Field(min_length=1, description="the program and its arguments; no shell")
    environment: dict[str, Text] = Field({}, description="variables added to the environment")
    folder: Path | None = Field(
        None, description="where it runs; the folder in which `run` was called if not given"
    )
    handles_warning: bool = Field(
        False,
        description="the program handles SIGUSR2, sent before the time limit: it saves and ends "
        "with status 75, and is started again; from other programs the signal is kept away",
    )

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        check_variables(environment, dict.fromkeys(_OURS, "nothing: the step sets it"))
        return environment


class Result(Frozen):
    """Whatever the program wrote to TRAINYARD_RESULT, and how long it took."""

    model_config = ConfigDict(extra="allow")

    seconds: float = Field(description="wall time of the program, s")


def run(settings: Settings, job: Job) -> Result:
    """Run the program on every rank; rank 0's JSON file becomes the result."""
    return Result(**_external.run(settings, job))
