"""The private Slurm: started once per test session, emptied after every test that used it."""

import os
from collections.abc import Iterator

import pytest

from jobs.backends.slurm.backend import SlurmBackend
from tests.slurm.cluster import PACKAGES, PrivateSlurm, missing_programs, new_slurm
from tests.slurm.steps import as_stored


@pytest.fixture(scope="session")
def private_slurm() -> Iterator[PrivateSlurm]:
    """A private cluster of 4 nodes with 4 fake GPUs each; skips, or fails in CI, without Slurm."""
    if missing := missing_programs():
        reason = f"{', '.join(missing)} not installed; Debian: apt-get install {PACKAGES}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with new_slurm() as cluster:
        yield cluster


@pytest.fixture
def slurm(private_slurm: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    """The private cluster, selected in this process's environment; emptied afterwards."""
    for name in os.environ:
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(private_slurm.conf))
    yield private_slurm
    private_slurm.clear()


@pytest.fixture
def backend(slurm: PrivateSlurm) -> SlurmBackend:
    """The Slurm backend on the private cluster."""
    return SlurmBackend(as_stored(partition="gpu"))
