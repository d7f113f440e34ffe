"""Steps for the backend's tests: real step folders whose worker runs a line of shell."""

import os
import secrets
import stat
import subprocess
from pathlib import Path

import pytest

from jobs.backends.base import JobState, QueueState, StepJob
from jobs.backends.slurm.backend import SlurmBackend
from jobs.cluster import Cluster
from jobs.pipeline import Resources
from jobs.step_folder import StepDir
from tests.slurm.cluster import REPOSITORY


def make_step(
    folder: Path, name: str, script: str = "true", code: Path = REPOSITORY, **resources: object
) -> StepJob:
    """A step of kind `command`, ready to be submitted."""
    expected = Resources.model_validate({"time": "5m", "memory_gb": 1, **resources})
    step = StepDir(folder / "steps" / name)
    step.write_job(
        {
            "name": name,
            "kind": "command",
            "settings": {
                "argv": ["bash", "-c", script],
                "environment": {},
                "folder": None,
                "handles_warning": False,
            },
            "resources": expected.model_dump(mode="json"),
            "needs": [],
            "gate": {},
        }
    )
    return StepJob(
        step=name,
        token=f"{name}.{secrets.token_hex(5)}",
        directory=step.path,
        logs=step.logs,
        code=code,
        cwd=folder,
        resources=expected,
    )


def as_stored(**fields: object) -> dict[str, object]:
    """A cluster as run.json holds it."""
    return Cluster.model_validate({"name": "private", **fields}).model_dump(mode="json")


def put_on_path(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that comes before the one of that name; `$real` in its text is that one."""
    real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/bash\nreal={real.strip()}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def state(backend: SlurmBackend, job: StepJob) -> JobState:
    return backend.states({job.token: ""})[job.token]


def is_in(backend: SlurmBackend, job: StepJob, expected: QueueState) -> bool:
    return state(backend, job).state is expected
