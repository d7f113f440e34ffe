"""Steps as processes of this machine: no Slurm, no daemon, and no terminal that must stay open.

Each step gets a keeper of its own, in its own session: it waits until the steps it needs have
succeeded, takes its turn (one step of a runs folder at a time, an flock that dies with it), starts
one worker per rank and waits for them. A job's id is the keeper's process id; its command line
carries the token, so that a recycled process id is never taken for the job.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.backends.base import JobState, QueueState, StepJob
from jobs.errors import Elsewhere
from jobs.fence import Attempt
from jobs.healing.heal import AGAIN, heal
from jobs.snapshot import entry
from jobs.step_folder import StepDir
from lact_asr.utils.locks import turn

_POLL = 0.2  # seconds
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL: time for a checkpoint


class LocalBackend:
    """The backend of this machine; `home` is the machine that a run belongs to."""

    every = 1.0

    def __init__(self, home: str = "") -> None:
        self.home = home

    def identity(self) -> str:
        """This machine, by name: process ids mean nothing on another one."""
        return socket.gethostname()

    def expect_home(self) -> None:
        """Elsewhere where this is not the machine that the run belongs to."""
        if self.home and (here := self.identity()) != self.home:
            raise Elsewhere(f"this run belongs to {self.home}, and here is {here}: log in there")

    def submit(self, job: StepJob, after: Sequence[str], behind: Sequence[str] = ()) -> str:
        """Start the keeper of a step."""
        command = [sys.executable, *entry(__name__), str(job.directory)]
        command += ["--token", job.token, "--cpus", str(job.resources.cpus)]
        command += ["--gpus", str(job.resources.gpus)]
        command += [f"--after={','.join(after)}", f"--behind={','.join(behind)}"]
        path = os.pathsep.join(filter(None, [str(job.code), os.environ.get("PYTHONPATH", "")]))
        with (job.logs / "keeper.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=job.cwd,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return f"{process.pid}.{job.token}"

    def find(self, job: StepJob) -> str | None:
        """The keeper that carries the token."""
        return _keeper_of(job.token) or None

    def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Running when there are workers; an ended keeper has failed, unless files differ."""
        self.expect_home()
        return {token: _state(job or _keeper_of(token)) for token, job in jobs.items()}

    def cancel(self, ids: Sequence[str]) -> None:
        """End keepers and their workers: SIGTERM, time to save, SIGKILL."""
        groups = [int(job.split(".")[0]) for job in ids if _lives(job)]
        for group in groups:
            _signal(group, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and any(map(_lives, ids)):
            time.sleep(_POLL / 4)
        for group in groups:
            _signal(group, signal.SIGKILL)


def _keeper(job: str) -> bool:
    """Whether the keeper of a job id lives."""
    import psutil

    pid, _, token = job.partition(".")
    try:
        process = psutil.Process(int(pid))
        return process.status() != psutil.STATUS_ZOMBIE and token in process.cmdline()
    except (psutil.NoSuchProcess, ValueError):  # ValueError: what is on record is no id of ours
        return False


def _lives(job: str) -> bool:
    """Whether anything of a job may still write."""
    return _keeper(job) or _has_orphans(job)


def _has_orphans(job: str) -> bool:
    """Whether workers, or their programs, have outlived the keeper of a job: one that was killed.

    They are in its process group, and their environment names the job; a step that calls a launcher
    starts keepers that inherit that environment, in groups of their own.
    """
    import psutil

    group = job.split(".")[0]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            is_of_group = str(os.getpgid(process.pid)) == group
            if is_of_group and process.environ().get("TRAINYARD_JOB") == job:
                return True
    return False


def _keeper_of(token: str) -> str:
    """The job id of the keeper that carries a token; empty where there is none."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if token in (process.info["cmdline"] or ()):
            return f"{process.pid}.{token}"
    return ""


def _state(job: str) -> JobState:
    import psutil

    if not job:
        return JobState(QueueState.UNKNOWN)
    if not _keeper(job):
        if _has_orphans(job):
            return JobState(QueueState.RUNNING, "its keeper was killed", job=job)
        return JobState(QueueState.FAILED, "its process is gone: see its log", job=job)
    try:
        workers = psutil.Process(int(job.split(".")[0])).children()
    except psutil.NoSuchProcess:
        workers = []
    if workers:
        began = min(worker.create_time() for worker in workers)
        return JobState(QueueState.RUNNING, elapsed=max(0.0, time.time() - began), job=job)
    return JobState(QueueState.WAITING, job=job)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _wait_for_needs(step: StepDir, after: Sequence[str]) -> None:
    """Return when every need has its result; exit where one has ended without."""
    for need in step.job()["needs"]:
        upstream = step.upstream(need)
        while upstream.result() is None:
            alive = [job for job in after if job.split(".")[1] == need and _keeper(job)]
            if not alive and upstream.result() is None:
                sys.exit(f"{need} ended without a result: {step.name} is not started")
            time.sleep(_POLL)


def _start(
    step: StepDir, job: str, rank: int, size: int, port: int, threads: int
) -> "subprocess.Popen[bytes]":
    environment = {  # inside an allocation of Slurm's the step is still no job of its own
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "TRAINYARD_JOB": job,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    with (step.logs / f"{job}_{rank}_log.out").open("ab") as log:
        command = [sys.executable, *entry("jobs.worker"), str(step.path)]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def keep(
    step: StepDir, token: str, after: Sequence[str], behind: Sequence[str], cpus: int, gpus: int
) -> int:
    """Wait for the needs and the turn, run the workers, return the first bad exit status."""
    while any(map(_lives, behind)):
        time.sleep(_POLL)
    _wait_for_needs(step, after)
    # one step of a runs folder at a time: the machine is not shared between steps
    with turn(step.path.parents[2] / "local.lock"):
        present = len(list(Path("/dev").glob("nvidia[0-9]*")))
        size = max(1, min(gpus, present))
        threads = max(1, min(cpus, (os.cpu_count() or 1) // size))
        job = f"{os.getpid()}.{token}"
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # the group got it: they save
        status = AGAIN
        while status == AGAIN:
            status = _run_workers(step, job, size, threads)
            status = heal(step, Attempt(token, job, 0), status) if status else 0
    return status


def _run_workers(step: StepDir, job: str, size: int, threads: int) -> int:
    """Run one worker per rank; the first bad exit status, else 0."""
    port = _free_port()
    workers = [_start(step, job, rank, size, port, threads) for rank in range(size)]
    statuses = [_wait_for_worker(workers) for _ in range(size)]
    return next((status for status in statuses if status), 0)


def _wait_for_worker(workers: "list[subprocess.Popen[bytes]]") -> int:
    """Wait for one more worker; after a bad end the others, who wait for it, are ended too."""
    while True:
        for worker in workers:
            if worker.poll() is not None:
                workers.remove(worker)
                if worker.returncode:
                    for other in workers:
                        other.terminate()
                return worker.returncode
        time.sleep(_POLL / 4)


def main() -> None:
    """The keeper's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", type=Path)
    parser.add_argument("--token")
    parser.add_argument("--after", default="", help="jobs that must succeed first")
    parser.add_argument("--behind", default="", help="jobs that must have ended first")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--gpus", type=int)
    given = parser.parse_args()
    after, behind = ([*filter(None, ids.split(","))] for ids in (given.after, given.behind))
    sys.exit(keep(StepDir(given.step), given.token, after, behind, given.cpus, given.gpus))
