"""The other ways to submit the same jobs: a loop over sbatch, submitit, gwf.

Each is given steps, whether they run one after the other, whether they are held, and what the last
one does in the end; it answers with a command. gwf is no dependency of ours: it is there if its
program is found.
"""

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

_LOOP = """\
set -e
after=""
for step in {names}; do
  id=$(sbatch --parsable --job-name=$step --time=5 --mem=100M --nodes=1 --ntasks-per-node=1 \\
    --cpus-per-task=1 --output=/dev/null {hold} $after --wrap='{work}')
  {link}
done
"""
_SUBMITIT = """\
import subprocess, submitit
before = None
executor = submitit.SlurmExecutor({folder!r})
for name in {names!r}:
    more = {{"hold": True}} if {held} else {{}}
    if {chained} and before:
        more |= {{"dependency": "afterok:" + before.job_id, "kill-on-invalid-dep": "yes"}}
    executor.update_parameters(
        job_name=name, time=5, mem="100MB", nodes=1, ntasks_per_node=1, cpus_per_task=1,
        wckey=None, additional_parameters=more,
    )
    before = executor.submit(subprocess.call, {then!r} if name == {last!r} else "true", shell=True)
"""
_SUBMITIT_STATES = """\
import submitit
jobs = [submitit.SlurmJob({folder!r}, job) for job in {ids!r}]
print([job.watcher.get_state(job.job_id) for job in jobs])  # one sacct; job.state asks each time
"""
_GWF = """\
from gwf import Workflow
gwf = Workflow(defaults={{"memory": "100M", "walltime": "00:05:00", "cores": 1}})
before = []
for name in {names!r}:
    made = [name + ".made"]
    then = {then!r} if name == {last!r} else "true"
    gwf.target(name, inputs=before, outputs=made) << "true; " + then + "; touch " + made[0]
    before = made if {chained} else []
"""


@dataclass(frozen=True)
class Jobs:
    """What is to be submitted: jobs that run `true`."""

    names: Sequence[str]
    chained: bool = False  # each behind the one before it
    held: bool = True  # they stay in the queue: nothing runs beside what is measured
    then: str = "true"  # what the last one does in the end: a shell command


class Call(NamedTuple):
    """A command, the folder in which it is to run, and variables that it needs."""

    words: list[str]
    folder: Path
    environment: Mapping[str, str] = {}


class Loop:
    """A shell loop over sbatch: what nothing can beat."""

    name = "raw sbatch"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submission(self, jobs: Jobs) -> Call:
        link = 'after="--dependency=afterok:$id --kill-on-invalid-dep=yes"'
        script = _LOOP.format(
            names=" ".join(jobs.names),
            hold="--hold" if jobs.held else "",
            work=f"test $SLURM_JOB_NAME != {jobs.names[-1]} || {jobs.then}",
            link=link if jobs.chained else ":",
        )
        return Call(["bash", "-c", script], self.folder)

    def status(self, jobs: Mapping[str, str]) -> Call:
        return Call(["sacct", "-X", "-n", "-j", ",".join(jobs.values())], self.folder)


class Submitit:
    """submitit as its users use it: an executor and a submission for each job."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = f"submitit {version('submitit')}", folder

    def submission(self, jobs: Jobs) -> Call:
        return self._python(
            _SUBMITIT.format(
                names=list(jobs.names),
                folder=str(self.folder / "submitit"),
                held=jobs.held,
                chained=jobs.chained,
                then=jobs.then,
                last=jobs.names[-1],
            )
        )

    def status(self, jobs: Mapping[str, str]) -> Call:
        ids = list(jobs.values())
        return self._python(_SUBMITIT_STATES.format(folder=str(self.folder / "submitit"), ids=ids))

    def _python(self, text: str) -> Call:
        return Call([sys.executable, "-c", text], self.folder)


class Gwf:
    """gwf with its Slurm backend; it cannot hold jobs, so a script before sbatch does it (1 ms)."""

    def __init__(self, program: str, folder: Path, path: str) -> None:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        self.name = f"gwf {said.stdout.split()[-1]}"
        self.program, self.folder, self.path = program, folder / "gwf", path
        holding = folder / "holding"
        holding.mkdir()
        script = holding / "sbatch"
        script.write_text(f'#!/bin/sh\nexec {shutil.which("sbatch", path=path)} --hold "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.holding = {"PATH": f"{holding}:{path}"}

    def submission(self, jobs: Jobs) -> Call:
        self._write(jobs)
        return Call([self.program, "run"], self.folder, self.holding if jobs.held else {})

    def status(self, jobs: Mapping[str, str]) -> Call:
        """Asked about these very jobs, as if gwf had submitted them."""
        self._write(Jobs(list(jobs)))
        (self.folder / ".gwf").mkdir()
        (self.folder / ".gwf" / "slurm-backend-tracked.json").write_text(json.dumps(dict(jobs)))
        return Call([self.program, "status"], self.folder)

    def _write(self, jobs: Jobs) -> None:
        """A folder that knows of no earlier submission."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        text = _GWF.format(
            names=list(jobs.names), chained=jobs.chained, then=jobs.then, last=jobs.names[-1]
        )
        (self.folder / "workflow.py").write_text(text)
        (self.folder / ".gwfconf.json").write_text('{"backend": "slurm"}')


Rival = Loop | Submitit | Gwf


def rivals(folder: Path, gwf: str | None, path: str) -> list[Rival]:
    """Those that are installed: gwf by its program, or the one on PATH."""
    program = gwf or shutil.which("gwf", path=path)
    found: list[Rival] = [Loop(folder), Submitit(folder)]
    return [*found, Gwf(program, folder, path)] if program else found
