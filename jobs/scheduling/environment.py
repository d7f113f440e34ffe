"""The variables that a job is submitted with: sbatch hands its own on to the job.

What a job of ours submits must not differ from what the launcher would have submitted: the job's
own variables say which GPUs it has, how many threads, and where its temporary folder is.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from jobs.errors import ClusterError

SHELL = "TRAINYARD_SHELL"  # the process id of a job's batch script, for what the job runs


def present() -> dict[str, str]:
    """The variables of this process, as text that JSON can hold whatever their bytes."""
    return {_text(name): _text(value) for name, value in os.environb.items()}


def of_batch_script() -> dict[str, str]:
    """The variables that the batch script of this job was started with: Slurm's beside those of the
    launcher, and nothing of what the script has set since (ClusterError where nobody can tell).
    """
    try:
        given = Path(f"/proc/{os.environ[SHELL]}/environ").read_bytes()
    except (KeyError, OSError) as error:
        raise ClusterError(f"the variables of the batch script are not known: {error}") from None
    pairs = (pair.partition(b"=") for pair in given.split(b"\0") if b"=" in pair)
    return {_text(name): _text(value) for name, _, value in pairs}


def restore(variables: Mapping[str, str]) -> None:
    """Make them those of this process; where Slurm's configuration is, each node says itself."""
    stays = {name: value for name, value in os.environb.items() if name == b"SLURM_CONF"}
    os.environb.clear()
    os.environb.update({_bytes(name): _bytes(value) for name, value in variables.items()})
    os.environb.update(stays)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _bytes(value: str) -> bytes:
    return value.encode("latin-1")
