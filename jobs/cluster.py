"""What differs between sites: a `Cluster` is a file in `slurm_templates/clusters`."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from jobs.errors import UserError, nearest
from jobs.pipeline import Minutes, check_variables
from jobs.reading.pipeline_file import read_model
from lact_asr.config.base import Frozen

TEMPLATES = Path(__file__).resolve().parents[1] / "slurm_templates"
_SIZES = "time nodes mem mem-per-cpu mem-per-gpu cpus-per-task cpus-per-gpu gpus gpus-per-task"
_SIZES += " gpus-per-socket ntasks ntasks-per-node ntasks-per-gpu tasks-per-node tres-per-task"
# Seen with sbatch 22.05: `array: 0-3` starts four workers in one folder; `export: NONE` keeps what
# setup exports, the run's code among it, from the step; `chdir` and `input` that are not there end
# in no log; `wait` holds sbatch until the job has ended; after `help` nothing is tested or queued.
_TAKEN = {  # sbatch parameters that have a home elsewhere: parameter -> what to write instead
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "gres": "gpu_request: gres",
    "gpus-per-node": "gpu_request and gpu_type",
    "signal": "warning_seconds",
    **dict.fromkeys(_SIZES.split(), "resources in the pipeline file"),
    "array": "one step for each job: a step is one job",
    "export": "environment, or export lines in setup",
    "export-file": "environment, or export lines in setup",
    "chdir": "nothing: a step runs where `run` was called (folder in a step of kind command)",
    "clusters": "nothing: log in where those jobs are to run",
    "input": "nothing: a step reads its files by their names",
    **dict.fromkeys(("job-name", "dependency", "comment"), "nothing: the launcher sets it"),
    **dict.fromkeys(("output", "error", "open-mode"), "nothing: logs lie in the step's folder"),
    **dict.fromkeys(
        ("requeue", "no-requeue", "kill-on-invalid-dep"), "nothing: chains of steps depend on it"
    ),
    **dict.fromkeys(
        ("parsable", "test-only", "wait", "wrap", "quiet", "verbose", "help", "usage", "version"),
        "nothing: it changes what sbatch does, not what the job asks for",
    ),
}
# Variables that say which process this is, and where its code lies.
_OURS = {
    **dict.fromkeys(
        ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"),
        "nothing: the processes of a step get it from Slurm",
    ),
    **dict.fromkeys(
        ("TRAINYARD_STEP", "TRAINYARD_RESULT", "TRAINYARD_JOB"), "nothing: the launcher sets it"
    ),
    "PYTHONPATH": "`export PYTHONPATH=...` in setup: the run's code is put before it",
}
_SLURMS = re.compile(r"SLURM_(JOB_?ID|JOB_NAME|PROCID|LOCALID|NODEID|NTASKS|STEP_.*|RESTART_COUNT)")


class Cluster(Frozen):
    """A site; empty text means that the site's own default holds."""

    name: str = Field("", description="name of the cluster; the file's name if not given")
    backend: Literal["slurm", "local"] = Field("slurm", description="local runs without Slurm")
    partition: str = Field("", description="partition, or several with commas between them")
    account: str = Field("", description="account that is charged")
    qos: str = Field("", description="quality of service")
    constraint: str = Field("", description="features that a node must have")
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="how the site wants GPUs to be asked for"
    )
    gpu_type: str = Field("", description="type of the GPUs where the site has several: h200")
    max_time: Minutes | None = Field(None, description="longest time limit, with unit: 12h, 2d")
    warning_seconds: int = Field(
        120, ge=10, description="s before the time limit at which a step is told to save and leave"
    )
    python: str = Field(
        "", description="Python on the compute nodes, after setup; the launcher's own if not given"
    )
    setup: list[str] = Field(
        [], description="shell lines before the step: module loads, a virtual environment"
    )
    environment: dict[str, str] = Field(
        {}, description="variables for the step, as they are: nothing is put in for $NAME"
    )
    extra: dict[str, str | int | bool] = Field(
        {}, description="further sbatch parameters: {exclude: node7, exclusive: true}"
    )

    @field_validator("partition", "account", "qos", "constraint", "gpu_type")
    @classmethod
    def _on_one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError(f"write it on one line, not {value!r}")
        return value

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        slurms = {name: "nothing: Slurm sets it" for name in environment if _SLURMS.fullmatch(name)}
        check_variables(environment, {**_OURS, **slurms})
        return environment

    @field_validator("extra")
    @classmethod
    def _not_taken(cls, extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        extra = {key.replace("_", "-"): value for key, value in extra.items()}
        mistakes = [*filter(None, map(_mistake_of, extra, extra.values()))]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return extra

    @property
    def interpreter(self) -> str:
        """Shell text that starts Python on a compute node."""
        return self.python or shlex.quote(sys.executable)


def unfit(path: Path) -> str:
    """Why Slurm cannot keep logs below a folder; empty where it can."""
    found = re.search(r"[%\\\x00-\x1f]", str(path))
    return f"{str(path)!r}: Slurm does not take {found[0]!r} as it is" if found else ""


def _mistake_of(key: str, value: object) -> str:
    """Why sbatch is not told this; sbatch also takes the beginning of a name for the name."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
        return f"{key!r} is no parameter: write one of `sbatch --help` without its dashes"
    if not str(value).isprintable():
        return f"{key!r}: write its value on one line, not {value!r}"
    taken = min((name for name in _TAKEN if name.startswith(key)), key=len, default=None)
    return f"{key!r} is not set here: write {_TAKEN[taken]}" if taken else ""


def names() -> list[str]:
    """The clusters that have a file."""
    return sorted(file.stem for file in (TEMPLATES / "clusters").glob("[!.]*.yaml"))


def default_cluster() -> str:
    """`$TRAINYARD_CLUSTER`, else `slurm` with the site's defaults, else `local` without Slurm."""
    found = "slurm" if shutil.which("sbatch") else "local"
    return os.environ.get("TRAINYARD_CLUSTER") or found


def load_cluster(name: str | None = None) -> Cluster:
    """The cluster of that name, or in the file of that path (UserError where there is none)."""
    name = name or default_cluster()
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else TEMPLATES / "clusters" / f"{name}.yaml"
    if not is_path and name not in names():
        hint = nearest(name, names())
        listed = "" if hint.startswith("valid") else f" There are {', '.join(names())};"
        raise UserError(
            f"no cluster {name!r}: {hint}{listed or ';'} "
            f"a new one is a copy of {TEMPLATES / 'clusters' / 'example.yaml'}"
        )
    cluster = read_model(path, Cluster)
    return cluster if cluster.name else cluster.model_copy(update={"name": path.stem})
