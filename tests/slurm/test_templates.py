"""The scripts in slurm_templates that people submit by hand."""

from pathlib import Path

from tests.conftest import REPOSITORY
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, sh


def test_a_pipeline_inside_one_allocation_goes_on_after_a_requeue(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    launch = Launcher(tmp_path, slurm)
    steps = {
        "first": sh("echo first >> ran"),
        "second": sh(f"echo begun >> ran; {UNTIL_GO}; echo $SLURM_JOB_ID-second >> ran", "first"),
        "third": sh("echo third >> ran", "second"),
    }
    script = REPOSITORY / "slurm_templates" / "one_allocation.sbatch"
    small = ["--time=10", "--mem=1G", "--cpus-per-task=1", f"--chdir={tmp_path}"]
    python = f"--export=ALL,PYTHON={launch.command[0]},PYTHONPATH={REPOSITORY}"
    said = slurm.run("sbatch", "--parsable", *small, python, script, launch.write(steps))
    job = said.strip()
    slurm.wait_for(lambda: launch.ran() == ["first", "begun"])

    slurm.run("scancel", "--batch", "--signal=USR2", job)  # what Slurm sends before the limit
    slurm.wait_for(lambda: launch.ran()[2:] == ["begun"])
    launch.touch("go")
    log = tmp_path / f"trainyard-{job}.log"
    slurm.wait_for(lambda: "COMPLETED" in slurm.run("squeue", "-h", "-tall", "-j", job, "-o%T"))
    assert launch.ran() == ["first", "begun", "begun", "-second", "third"], log.read_text()
