"""Standalone sbatch scripts of a pipeline: what submitit would submit, for plain `sbatch`.

The folder is a run like any other, except that `submit_all.sh` submits it: it writes down the ids
it gets, so that `launch.py status DIR` works.
"""

import shlex
from pathlib import Path

from jobs.clusters import Cluster, sbatch_text, unfit
from jobs.errors import UserError
from jobs.spec import Pipeline
from jobs.store import Run, RunStore
from jobs.submit import create, step_job
from lact_asr.files import PRIVATE, write_atomic


def render(pipeline: Pipeline, cluster: Cluster, given: str, target: Path) -> Run:
    """Write the scripts into `target`, a folder that does not exist yet (UserError otherwise)."""
    if said := unfit(target.absolute()):
        raise UserError(f"--out: {said}: name a folder without it")
    if target.exists():
        raise UserError(f"{target} exists: name a folder that does not, or delete it")
    run = create(RunStore(target.absolute().parent), pipeline, cluster, given, target.name)
    lines = ["#!/bin/bash", f"# Submits the pipeline {pipeline.name}, each step behind its needs."]
    lines += ["set -euo pipefail", 'cd "$(dirname "$0")"', ""]
    for step in pipeline.steps:
        token = f"{step.name}.{pipeline.name}"
        job = step_job(run, step.model_dump(mode="json"), token)
        write_atomic(run.path / f"{step.name}.sbatch", sbatch_text(cluster, job), PRIVATE)
        lines += _submission(step.name, step.needs, token)
    script = run.path / "submit_all.sh"
    write_atomic(script, "\n".join(lines) + "\n")
    script.chmod(0o700)
    return run


def _submission(name: str, needs: tuple[str, ...], token: str) -> list[str]:
    """The lines that submit one step and write down its id."""
    after = ":".join(f"${{{need}}}" for need in needs)
    dependency = f'--dependency="afterok:{after}" ' if needs else ""
    record = f'{{"token": "{token}", "time": %s, "job": "%s"}}\\n'
    return [
        f"{name}=$(sbatch --parsable {dependency}{shlex.quote(name + '.sbatch')} | cut -d';' -f1)",
        f'printf {shlex.quote(record)} "$(date +%s)" "${name}" '
        f">> {shlex.quote(f'steps/{name}/submissions.jsonl')}",
        f'echo "{name} ${name}"',
    ]
