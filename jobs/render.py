"""Standalone sbatch scripts of a pipeline: what submitit would submit, for plain `sbatch`.

The folder is a run like any other, except that `submit_all.sh` submits it: each intent is on disk
before its job can exist, and the id right after it, so that `status DIR` and `resume DIR` work.
"""

import secrets
import shlex
from pathlib import Path
from typing import Any

from jobs.backends.slurm.sbatch import sbatch_text
from jobs.cluster import TEMPLATES, Cluster, unfit
from jobs.errors import UserError
from jobs.pipeline import Pipeline
from jobs.program import NAME
from jobs.scheduling.create import create
from jobs.scheduling.recover import step_job
from jobs.store import Run, RunStore
from lact_asr.utils.files import PRIVATE, write_atomic


def render(pipeline: Pipeline, cluster: Cluster, given: str, target: Path, **facts: Any) -> Run:
    """Write the scripts into `target`, a folder that does not exist yet (UserError otherwise).

    `facts` go into run.json.
    """
    if said := unfit(target.absolute()):
        raise UserError(f"--out: {said}: name a folder without it")
    if target.exists():
        raise UserError(f"{target} exists: name a folder that does not, or delete it")
    run = create(RunStore(target.absolute().parent), pipeline, cluster, given, target.name, **facts)
    lines = [(TEMPLATES / "submit_all.sh").read_text(), f"program={NAME}"]
    for step in pipeline.steps:
        token = f"{step.name}.{secrets.token_hex(5)}"  # unlike that of any other rendering
        job = step_job(run, step.model_dump(mode="json"), token)
        write_atomic(run.path / f"{step.name}.sbatch", sbatch_text(cluster, job), PRIVATE)
        lines.append(shlex.join(["submit", step.name, token, *step.needs]))
    script = run.path / "submit_all.sh"
    write_atomic(script, "\n".join(lines) + "\n")
    script.chmod(0o700)
    return run
