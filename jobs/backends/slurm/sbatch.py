"""What one step asks of Slurm.

`parameters` turns a cluster and a step into the parameters of submitit's SlurmExecutor: the backend
submits with them, the preflight asks with them (`directives`), and `sbatch_text` writes them down
as a script.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.backends.base import StepJob
from jobs.cluster import TEMPLATES, Cluster
from jobs.healing.heal import AGAIN
from jobs.pipeline import Resources
from jobs.snapshot import entry
from jobs.store import Run


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
    return f"{cluster.interpreter} -u {shlex.join([*entry('jobs.worker'), str(step)])}"


def _srun(cluster: Cluster, job: StepJob) -> str:
    """A function in the place of srun: after a bad end it asks whether to begin again.

    The queue position and what depends on the job stay as they are. After the last end the job
    submits what is left of a run that drives itself, and ends as its step has ended whatever comes
    of that.
    """
    step = shlex.quote(str(job.directory))
    heal = f"{cluster.interpreter} {shlex.join(entry('jobs.healing.heal'))}"
    marker = shlex.quote(str(Run(job.directory.parents[1]).follows))
    launch = f"{cluster.interpreter} {shlex.quote(str(job.code / 'launch.py'))}"
    return "\n".join(
        [
            "srun() {",
            f"  local status={AGAIN}",
            f"  while [ $status -eq {AGAIN} ]; do",
            "    status=0",
            '    command srun "$@" || status=$?',
            "    [ $status -eq 0 ] && break",
            f"    {heal} {step} $status && status=0 || status=$?",
            "  done",
            f"  [ ! -e {marker} ] || {launch} follow {step} || true",
            "  return $status",
            "}",
        ]
    )


def _directive(flag: str) -> str:
    key, equals, value = flag.partition("=")
    return f"#SBATCH {key}{equals}{shlex.quote(value) if equals else ''}"


def _memory(gigabytes: float) -> str:
    whole = gigabytes == int(gigabytes)
    return f"{int(gigabytes)}GB" if whole else f"{math.ceil(gigabytes * 1024)}MB"


def _check_python(python: str, step: str) -> str:
    """Shell text that ends a job whose cluster file names a Python that is none for us: an old one
    would end in a SyntaxError somewhere in our code.
    """
    test = "import sys; sys.exit(sys.version_info < (3, 10))"
    found = f"$({python} -V 2>&1 | head -n 1)"
    told = f"{step}: Python 3.10 or newer is needed, not {found}: mend setup or python in the "
    return f'{python} -c "{test}" || {{ echo "{told}cluster file" >&2; exit 1; }}'


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
        "export TRAINYARD_SHELL=$$",  # `scheduling.environment` reads what this shell began with
        *cluster.setup,
        *(f"export {key}={value}" for key, value in exports.items()),
        f"[ -d {cwd} ] || {{ echo {shlex.quote(gone)} >&2; exit 1; }}",
        f"cd {cwd}",
        *([_check_python(cluster.python, job.step)] if cluster.python else []),
        "trap - ERR",
        _srun(cluster, job),
    ]
