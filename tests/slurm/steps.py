"""Steps for the backend's tests: real step folders whose worker runs a line of shell."""

import secrets
from pathlib import Path

from jobs.backends import StepJob
from jobs.clusters import Cluster
from jobs.spec import Resources
from jobs.store import StepDir
from tests.slurm.cluster import REPOSITORY


def make_step(
    folder: Path, name: str, script: str = "true", code: Path = REPOSITORY, **resources: object
) -> StepJob:
    """A step of kind `command`, ready to be submitted."""
    wanted = Resources.model_validate({"time": "5m", "memory_gb": 1, **resources})
    step = StepDir(folder / "steps" / name)
    step.write_job(
        {
            "name": name,
            "kind": "command",
            "settings": {"argv": ["bash", "-c", script], "environment": {}, "folder": None},
            "resources": wanted.model_dump(mode="json"),
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
        resources=wanted,
    )


def as_stored(**fields: object) -> dict[str, object]:
    """A cluster as run.json holds it."""
    return Cluster.model_validate({"name": "private", **fields}).model_dump(mode="json")
