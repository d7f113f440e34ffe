"""The private Slurm leaves nothing behind, however the process that asked for it ends."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import PATIENCE, REPOSITORY, PrivateSlurm, claimed_ports

USER_OF_A_CLUSTER = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import PATIENCE, PrivateSlurm
with PrivateSlurm(Path(sys.argv[1]), nodes=1, gpus=1) as slurm:
    job = Path(sys.argv[1]) / "job"
    slurm.run("sbatch", "--output=/dev/null", "--wrap", f"echo $$ > {job}; sleep 600")
    slurm.wait_for(lambda: job.exists() and job.read_text())
    print("ready", flush=True)
    time.sleep(600)
"""


def processes_of(directory: Path) -> list[psutil.Process]:
    """Processes that belong to the cluster in a directory: its daemons and its jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("SLURM_CONF", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(str(directory) in word for word in words):
            found.append(process)
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; in a container whose first process reaps nobody it stays a zombie."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("private_slurm")  # skips where Slurm is not installed
def test_daemons_and_jobs_end_when_the_user_of_a_cluster_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", USER_OF_A_CLUSTER, str(tmp_path)]
    user = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None and user.stdout.readline() == b"ready\n"
        alive = [*processes_of(tmp_path), psutil.Process(int((tmp_path / "job").read_text()))]
        daemons = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"}
        assert daemons <= {process.name() for process in alive}
    finally:
        user.kill()
        user.communicate()
    end = time.monotonic() + PATIENCE
    while any(map(lives, alive)) and time.monotonic() < end:
        time.sleep(0.1)
    assert [process for process in alive if lives(process)] == []
    assert processes_of(tmp_path) == []


def test_partition_short_ends_after_two_minutes_and_gpu_has_four_nodes(
    slurm: PrivateSlurm,
) -> None:
    said = slurm.run("sinfo", "-h", "-o", "%P %l %D %G").split("\n")
    assert "short 2:00 4 gpu:4" in said
    assert "gpu* infinite 4 gpu:4" in said


def test_a_job_in_preempt_is_requeued_when_gpu_needs_its_nodes(slurm: PrivateSlurm) -> None:
    script = ["--parsable", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 60"]
    lower = slurm.run("sbatch", "--partition=preempt", "--requeue", *script).strip()
    slurm.wait_for(lambda: slurm.state(lower) == "RUNNING")
    upper = slurm.run("sbatch", *script).strip()
    slurm.wait_for(lambda: slurm.state(upper) == "RUNNING")
    assert slurm.state(lower) == "PENDING"


def test_ports_belong_to_one_who_has_claimed_them_though_nobody_listens_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with claimed_ports(4) as one:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of tests with another TMPDIR
        with claimed_ports(4) as other:
            assert not {*one} & {*other}
    with claimed_ports(4) as again:
        assert again == one
