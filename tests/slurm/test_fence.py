"""Starts that must not go on: of a node that Slurm has given up, of a job out of its order."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.slurm.backend import SlurmBackend
from jobs.snapshot import entry
from jobs.step_folder import StepDir
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import write_manifest
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher
from tests.slurm.steps import as_stored, make_step
from tests.slurm.test_requeue import learn


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


class Orphan:
    """The worker of an earlier start of a job, on a node that has lost touch with Slurm."""

    def __init__(self, step: StepDir, code: Path, cwd: Path, environment: dict[str, str]) -> None:
        submission = step.submissions()[-1]
        job = {"SLURM_JOB_ID": submission.job, "SLURM_JOB_NAME": submission.token}
        place = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
        self.log = cwd / "orphan.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-u", *entry("jobs.worker"), str(step.path)],
                env={**environment, **job, **place, "PYTHONPATH": str(code)},
                cwd=cwd,
                stdout=log,
                stderr=log,
            )

    def steps(self) -> int:
        """Training steps that it has taken."""
        return self.log.read_text().count("Step ")


@pytest.fixture
def orphans() -> Iterator[list[Orphan]]:
    """Those that a test starts; none outlives it."""
    started: list[Orphan] = []
    yield started
    for orphan in started:
        orphan.process.kill()
        orphan.process.wait()


def test_an_orphan_on_a_lost_node_leaves_to_the_requeued_job_and_writes_no_more(
    launcher: Launcher, orphans: list[Orphan], speech: Path
) -> None:
    write_manifest(launcher.folder / "eight.jsonl", scan(speech / "train")[:8])
    training = learn("10m")["train"]
    launcher("run", launcher.write({"train": training}))
    step = StepDir(launcher.newest() / "steps" / "train")
    wait_for = launcher.slurm.wait_for
    wait_for(lambda: checkpoints(step))
    job = step.submissions()[-1].job
    launcher.slurm.run("scontrol", "requeuehold", job)
    wait_for(lambda: launcher.slurm.state(job) == "PENDING")
    code = launcher.newest() / "code"
    orphans.append(Orphan(step, code, launcher.folder, launcher.environment))
    orphan = orphans[0]
    wait_for(lambda: orphan.steps() >= 3)  # it trains and writes, as the first start would
    launcher.slurm.run("scontrol", "release", job)
    wait_for(lambda: orphan.process.poll() is not None)
    last = orphan.log.read_text().splitlines()[-1]
    assert orphan.process.returncode == 0, last
    assert last.startswith(f"train goes on elsewhere (start 2 of job {job} on ")
    claim = json.loads((step.path / "attempt.json").read_text())
    assert (claim["job"], claim["restart"]) == (job, 1)
    since = claim["time"]
    wait_for(lambda: len(steps_since(step, since)) > 30)
    seen = steps_since(step, since)
    events = [event for event in step.events() if event["time"] >= since]
    resumed = [event for event in events if event["event"] == "resumed"]
    assert len(resumed) == 2, "of the worker and of the training, once each"
    first = resumed[1]["step"] + 1
    begins = len(seen) - 1 - seen[::-1].index(first)
    assert seen[begins:] == list(range(first, first + len(seen) - begins)), "none is written twice"
    assert begins <= 1, "a line that the orphan had begun may still land, and no other"
    assert step.failure() is None
    launcher("cancel", launcher.newest().name)


def checkpoints(step: StepDir) -> list[dict[str, Any]]:
    return [event for event in step.events() if event["event"] == "checkpoint"]


def steps_since(step: StepDir, since: float) -> list[int]:
    """Training steps on record from a moment on."""
    lines = [line for line in step.metrics() if line["time"] >= since]
    return [line["step"] for line in lines if "learning_rate" in line]


def test_a_job_that_slurm_starts_though_its_need_has_failed_does_not_run(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    """Slurm starts what is behind a failed job that it has forgotten (MinJobAge, 300 s)."""
    backend = SlurmBackend(as_stored(partition="gpu"))
    job = make_step(tmp_path, "train", f"touch {tmp_path}/ran")
    step = StepDir(job.directory)
    step.upstream("corpus").write_job({})
    step.upstream("corpus").decide_failure({"cause": "command", "message": "", "job": "1"})
    step.write_job({**step.job(), "needs": ["corpus"]})
    found = backend.submit(job, [])
    slurm.wait_for(lambda: slurm.state(found) == "FAILED")
    assert step.failure()["cause"] == "needs_missing"
    assert "corpus: it has no result.json" in step.failure()["message"]
    assert last_line(job.logs, found).startswith("train failed: needs_missing: corpus")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (["true", "module load cuda/99"], "train: its setup failed with status 127: module load"),
        (["false"], "train: its setup failed with status 1: false"),
        ([], "the folder in which it was launched, is not on this node: put it back, or launch"),
    ],
)
def test_a_job_that_ends_before_its_step_begins_says_why_in_the_last_line_of_its_log(
    slurm: PrivateSlurm, tmp_path: Path, setup: list[str], words: str
) -> None:
    backend = SlurmBackend(as_stored(partition="gpu", setup=setup))
    job = make_step(tmp_path, "train", "true")
    if not setup:
        job = job._replace(cwd=tmp_path / "moved")
    found = backend.submit(job, [])
    slurm.wait_for(lambda: slurm.state(found) == "FAILED")
    assert words in last_line(job.logs, found)
    assert (str(job.cwd) in last_line(job.logs, found)) == (not setup)


def test_a_python_that_is_too_old_is_named_where_the_cluster_file_asks_for_it(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    """Not by a SyntaxError somewhere in our code."""
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" != -V ] || echo Python 3.6.8\nexit 1\n')
    old.chmod(0o755)
    backend = SlurmBackend(as_stored(partition="gpu", python=str(old)))
    found = backend.submit(job := make_step(tmp_path, "train", "true"), [])
    slurm.wait_for(lambda: slurm.state(found) == "FAILED")
    words = "train: Python 3.10 or newer is needed, not Python 3.6.8: mend setup or python in the"
    assert last_line(job.logs, found) == f"{words} cluster file"
    backend = SlurmBackend(as_stored(partition="gpu", python=sys.executable))
    found = backend.submit(make_step(tmp_path, "other", "true"), [])
    slurm.wait_for(lambda: slurm.state(found) == "COMPLETED")


def last_line(logs: Path, job: str) -> str:
    """What the step said last, before srun reported its exit status."""
    lines = (logs / f"{job}_0_log.err").read_text().splitlines()
    return [line for line in lines if not line.startswith("srun: ")][-1]
