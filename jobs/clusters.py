"""What differs between sites, and what one step therefore asks of Slurm.

A `Cluster` is a file in `slurm_templates/clusters`. `parameters` turns a cluster and a step into
the parameters of submitit's SlurmExecutor: the backend submits with them, the preflight asks with
them (`directives`), and `sbatch_text` writes them down as a script.
"""

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from jobs.backends import StepJob
from jobs.errors import UserError, nearest
from jobs.reading import read_model
from jobs.snapshot import entry
from jobs.spec import Frozen, Minutes, Resources, check_variables

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
    "chdir": "nothing: a step runs where launch.py was called (folder in a step of kind command)",
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
    return sorted(file.stem for file in (TEMPLATES / "clusters").glob("*.yaml"))


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
        known = ", ".join(names())
        raise UserError(
            f"no cluster {name!r}: {nearest(name, names())} There are {known}; "
            f"a new one is a copy of {TEMPLATES / 'clusters' / 'example.yaml'}"
        )
    cluster = read_model(path, Cluster)
    return cluster if cluster.name else cluster.model_copy(update={"name": path.stem})


def request(cluster: Cluster, resources: Resources) -> dict[str, Any]:
    """What a step needs, as parameters of submitit's SlurmExecutor; None means not asked for."""
    gpus = f"{cluster.gpu_type}:{resources.gpus}" if cluster.gpu_type else str(resources.gpus)
    by_gres = cluster.gpu_request == "gres"
    return {
        "time": resources.time,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "cpus_per_task": resources.cpus,
        "mem": _memory(resources.memory_gb),
        "gpus_per_node": gpus if resources.gpus and not by_gres else None,
        "gres": f"gpu:{gpus}" if resources.gpus and by_gres else None,
        "partition": cluster.partition or None,
        "account": cluster.account or None,
        "qos": cluster.qos or None,
        "constraint": cluster.constraint or None,
        "wckey": None,  # submitit's default, "submitit", is refused where wckeys are checked
        # a signal that is due before the job starts is sent at once: 120 s of 2 minutes would be
        "signal_delay_s": min(cluster.warning_seconds, 15 * resources.time),
        "additional_parameters": {
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **{key: value for key, value in cluster.extra.items() if value is not False},
        },
    }


def parameters(
    cluster: Cluster, job: StepJob, after: Sequence[str] = (), behind: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything submitit's SlurmExecutor is told about one step.

    It starts when the jobs `after` have succeeded and the jobs `behind` have ended in any way.
    """
    conditions = {"afterok": after, "afterany": behind}
    dependency = ",".join(f"{word}:{':'.join(ids)}" for word, ids in conditions.items() if ids)
    return {
        **request(cluster, job.resources),
        "job_name": job.token,
        "comment": str(job.directory),
        "dependency": dependency or None,
        "setup": _setup(cluster, job),
        # srun does not take over --cpus-per-task from sbatch (release notes of Slurm 22.05);
        # a rank that dies must end the others, which wait for it in a collective
        "srun_args": [f"--cpus-per-task={job.resources.cpus}", "--kill-on-bad-exit=1"],
    }


def directives(request: Mapping[str, Any], logs: Path | None = None) -> dict[str, Any]:
    """The same as sbatch has it: {"time": 60, "signal": "USR2@120", "requeue": True, ...}."""
    lines = {key.replace("_", "-"): value for key, value in request.items() if value is not None}
    extra = lines.pop("additional-parameters")
    lines["signal"] = f"USR2@{lines.pop('signal-delay-s')}"
    for key in ("setup", "srun-args"):
        lines.pop(key, None)
    if logs:
        lines |= {"output": str(logs / "%j_0_log.out"), "error": str(logs / "%j_0_log.err")}
        lines["open-mode"] = "append"
    return {**lines, **extra}


def flags(directives: Mapping[str, Any]) -> list[str]:
    """Directives as arguments of sbatch, in alphabetical order."""
    ordered = sorted(directives.items())
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in ordered]


def sbatch_text(cluster: Cluster, job: StepJob, after: Sequence[str] = ()) -> str:
    """A script for plain sbatch: the same directives, setup and command."""
    asked = parameters(cluster, job, after)
    logs = [f"--output={job.logs}/%j_%t_log.out", f"--error={job.logs}/%j_%t_log.err"]
    srun = shlex.join(["srun", "--unbuffered", *logs, *asked["srun_args"]])
    template = (TEMPLATES / "job.sbatch").read_text()
    return template.format(
        directives="\n".join(_directive(flag) for flag in flags(directives(asked, job.logs))),
        setup="\n".join(asked["setup"]),
        command=f"{srun} {step_command(cluster, job.directory)}",
    )


def step_command(cluster: Cluster, step: Path) -> str:
    """Shell text that runs the worker on a step's folder, with our code from the snapshot."""
    code = shlex.quote(entry("jobs.worker"))
    return f"{cluster.interpreter} -u -c {code} {shlex.quote(str(step))}"


def _directive(flag: str) -> str:
    key, equals, value = flag.partition("=")
    return f"#SBATCH {key}{equals}{shlex.quote(value) if equals else ''}"


def _memory(gigabytes: float) -> str:
    whole = gigabytes == int(gigabytes)
    return f"{int(gigabytes)}GB" if whole else f"{math.ceil(gigabytes * 1024)}MB"


def _setup(cluster: Cluster, job: StepJob) -> list[str]:
    """Shell lines before the step; without `set -e` a failed `module load` would go on.

    The log's last line says which of them failed.
    """
    exports = {key: shlex.quote(value) for key, value in cluster.environment.items()}
    exports["PYTHONPATH"] = f"{shlex.quote(str(job.code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    failed = f'echo "{job.step}: its setup failed with status $?: $BASH_COMMAND" >&2'
    gone = (
        f"{job.step}: {job.cwd}, the folder in which it was launched, is not on this node: put it "
        "back, or launch anew from where it is now"
    )
    cwd = shlex.quote(str(job.cwd))
    return [
        "set -e",
        f"trap {shlex.quote(failed)} ERR",
        *cluster.setup,
        *(f"export {key}={value}" for key, value in exports.items()),
        f"[ -d {cwd} ] || {{ echo {shlex.quote(gone)} >&2; exit 1; }}",
        f"cd {cwd}",
        "trap - ERR",
    ]
