"""Run any program: its exit status is the result, a JSON file that it may write the details.

What people use sbatch for. The program gets the step's resources and these variables:
TRAINYARD_STEP (the step's folder), TRAINYARD_RESULT (where it may write a JSON object whose
entries later steps and the gate can refer to).
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator

from jobs.errors import Interrupted, StepFailed
from jobs.job import Job
from jobs.spec import Frozen, Resources, check_variables
from lact_asr.files import read_json

RESOURCES = Resources(time="1h", cpus=1, memory_gb=4)
_OURS = ("TRAINYARD_STEP", "TRAINYARD_RESULT")
_LATE = 1.0  # seconds that the cluster's signal may come after the program's end
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
        None, description="where it runs; the folder of `launch.py run` if not given"
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
    written = job.directory / f"result_of_rank_{job.rank}.json"
    written.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **settings.environment,
        "TRAINYARD_STEP": str(job.directory),
        "TRAINYARD_RESULT": str(written),
    }
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            settings.argv, cwd=settings.folder, env=environment, preexec_fn=_ignore_warning
        )
    except OSError as error:
        raise StepFailed("command", f"cannot start {settings.argv[0]!r}: {error}") from None
    status = process.wait()
    if status and _was_asked(job, status):
        raise Interrupted(None)
    if status:
        reason = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise StepFailed("command", f"{settings.argv[0]} {reason}: see `launch.py logs`")
    extra = read_json(written) if written.exists() else {}
    if not isinstance(extra, dict):
        raise StepFailed("command", f"{written.name} must hold a JSON object")
    return Result(**{**extra, "seconds": round(time.monotonic() - started, 3)})


def _was_asked(job: Job, status: int) -> bool:
    """Whether the cluster ended the program: it signals every process of a step, one after the
    other, so the program's death by a signal may be seen before the signal that is meant for us.
    """
    patience = time.monotonic() + (_LATE if status < 0 or status > 128 else 0.0)
    while not job.should_stop() and time.monotonic() < patience:
        time.sleep(0.02)
    return job.should_stop()


def _ignore_warning() -> None:
    """The time-limit warning reaches every process of the job and would end the program early.

    A program that can save its work installs its own handler for SIGUSR2.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
