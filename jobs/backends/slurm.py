"""Steps as jobs of Slurm: submitted through submitit, judged by squeue and sacct.

Each job carries its step's token as its name; that is how a job is found whose submission was cut
short. The job runs the worker itself, not submitit's pickle of it: it starts 0.2 s sooner, and runs
even if nobody ever learnt its id, by which that pickle is named.

submitit and pydantic are imported by `submit` alone (0.3 s): status and cancel need neither.
"""

import importlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.backends import JobState, QueueState, StepJob, SubmitUnclear
from jobs.errors import ClusterError
from lact_asr.files import PRIVATE

if TYPE_CHECKING:
    from submitit import SlurmExecutor

    from jobs.clusters import Cluster

_TIMEOUT = 60  # seconds for one call; Slurm's own MessageTimeout is 10 s to 100 s
# Variables of a job that we may be in, and of users: they would beat what a command asks for.
_INHERITED = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "SQUEUE_", "SACCT_")
# What sbatch says when nothing has been queued: its own complaints, and the controller's answers.
# Everything else ("Socket timed out on send/recv operation", "Unexpected message received", no
# words at all) may come after the job was queued.
_REFUSED = (
    r"sbatch: (fatal|error: Invalid --|unrecognized option|invalid option|option )|"
    r"Batch job submission failed: .*(Invalid|invalid|specified|specification|not available|"
    r"permission denied|not permitted|violates|unable to accept|disabled|More processors|"
    r"Requested|Required|dependency problem|exceeds|too long|Reservation|limit)"
)
_OF_STATE = {
    QueueState.PENDING: "PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT",
    QueueState.RUNNING: "RUNNING COMPLETING CONFIGURING RESIZING SIGNALING STAGE_OUT STOPPED"
    " SUSPENDED",
    QueueState.SUCCEEDED: "COMPLETED",
    QueueState.CANCELLED: "CANCELLED PREEMPTED REVOKED",
    QueueState.FAILED: "FAILED TIMEOUT OUT_OF_MEMORY NODE_FAIL BOOT_FAIL DEADLINE LAUNCH_FAILED"
    " RECONFIG_FAIL",
}
_STATES = {word: state for state, words in _OF_STATE.items() for word in words.split()}
_WORDS = {  # Slurm's -> ours, where Slurm's alone would not tell a person what happened
    "None": "",
    "Dependency": "",
    "TIMEOUT": "time limit reached",
    "OUT_OF_MEMORY": "out of memory (resources.memory_gb)",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "SUSPENDED": "suspended",
    "DEADLINE": "deadline passed",
    "NonZeroExitCode": "exit status not 0",
    "JobLaunchFailure": "it could not be started: its node must see the run's folder",
    "BadConstraints": "no node has what it asks for",
    "DependencyNeverSatisfied": "a step before it failed",
    "PartitionTimeLimit": "resources.time is over the partition's limit",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an administrator",
}
_PENDING = {  # what it means for a job that is PENDING for this reason
    "Dependency": QueueState.WAITING,
    "DependencyNeverSatisfied": QueueState.CANCELLED,  # it would stay in the queue for ever
}


class SlurmBackend:
    """The backend of a cluster, given as run.json has it; the Slurm it talks to is the system's."""

    def __init__(self, cluster: "Cluster | Mapping[str, Any]") -> None:
        self.cluster = cluster

    def submit(self, job: StepJob, after: Sequence[str]) -> str:
        """Queue one step; ClusterError where Slurm refuses, SubmitUnclear where nobody knows."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from jobs.clusters import Cluster
        from jobs.worker import Worker

        executor = _executor(Cluster.model_validate(self.cluster), job, after)
        try:
            return str(executor.submit(Worker(job.directory)).job_id)
        except FailedSubmissionError as error:  # sbatch ended well, with words nobody understands
            raise SubmitUnclear(str(error)) from error
        except FailedJobError as error:
            said = str(error).strip() or "sbatch ended without a word"
            if re.search(_REFUSED, said):
                raise ClusterError(f"{job.step}: Slurm refused it: {said}") from error
            raise SubmitUnclear(said) from error

    def find(self, job: StepJob) -> str | None:
        """The id of the newest job that carries the token, in the queue or in the accounts."""
        _wait_for_sbatch(job)
        said = call("squeue", "-h", "-t", "all", "-n", job.token, "-o", "%A")
        if not said.strip():
            # by name sacct looks at today only, and at jobs that began some 4 s ago or earlier
            said = _sacct("--name", job.token, "-S", "now-30days", "-o", "JobIDRaw")[0]
        ids = sorted(said.split(), key=int)
        return ids[-1] if ids else None

    def states(self, submitted: Mapping[str, float]) -> dict[str, JobState]:
        """The state of each job: one squeue call, and one sacct call if squeue has forgotten some.

        UNKNOWN is a job that neither knows: it has left the queue, or came into it just now.
        ClusterError where squeue does not answer, since nothing may be concluded from that.
        """
        if not submitted:
            return {}
        states = _queued(list(submitted))
        if missing := [job for job in submitted if job not in states]:
            states |= _accounted(missing)
        return states

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs in one call; those that have ended meanwhile are none of our business."""
        if ids:
            call("scancel", *ids, harmless="already completing or completed|Invalid job id")


def load_early() -> None:
    """Import submitit while others wait for Slurm and the disk: the first job is 45 ms earlier."""
    threading.Thread(target=importlib.import_module, args=["submitit"]).start()


def _executor(cluster: "Cluster", job: StepJob, after: Sequence[str]) -> "SlurmExecutor":
    """submitit's executor for one step."""
    from submitit import SlurmExecutor

    from jobs.clusters import parameters, step_command

    class Executor(SlurmExecutor):  # type: ignore[misc]
        @property
        def _submitit_command_str(self) -> str:
            return step_command(cluster, job.directory)

        def _make_submission_command(self, submission_file_path: Any) -> list[str]:
            submission_file_path.chmod(PRIVATE)  # it has the cluster's environment in it
            command: list[str] = super()._make_submission_command(submission_file_path)
            inherited = [name for name in os.environ if _is_inherited(name)]
            hidden = [word for name in inherited for word in ("-u", name)]
            return ["env", *hidden, *command] if hidden else command

    executor = Executor(job.logs)
    executor._throttling = 0.0  # submitit pauses 0.2 s between jobs: 10 s for 50
    executor.update_parameters(**parameters(cluster, job, after))
    return executor


def _wait_for_sbatch(job: StepJob) -> None:
    """An sbatch outlives a launcher that is killed, and may queue the step after we have looked."""
    import psutil

    begins = f"{job.logs}/.submission_file_"
    end = time.monotonic() + _TIMEOUT
    while time.monotonic() < end:
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        if not any(word.startswith(begins) for words in commands for word in words):
            return
        time.sleep(0.1)


def _is_inherited(name: str) -> bool:
    return name.startswith(_INHERITED) and name != "SLURM_CONF"


def _queued(ids: Sequence[str]) -> dict[str, JobState]:
    """What squeue says; it forgets a job MinJobAge (300 s) after its end."""
    command = ["squeue", "-h", "-t", "all", "-j", ",".join(ids), "-o", "%A|%T|%r|%M"]
    states = {}
    for line in call(*command, harmless="Invalid job id").splitlines():
        job, word, reason, elapsed = line.split("|")
        seen = _judge(word, reason, elapsed)
        if word == "PENDING":
            seen = seen._replace(state=_PENDING.get(reason, seen.state))
        elif word == "PREEMPTED":
            seen = seen._replace(state=QueueState.PENDING)  # on its way back into the queue
        states[job] = seen
    return states


def _accounted(ids: Sequence[str]) -> dict[str, JobState]:
    """What sacct says of jobs that have left the queue; a site may have it switched off."""
    said, trouble = _sacct("-j", ",".join(ids), "-o", "JobIDRaw,State,Elapsed,ExitCode")
    states = dict.fromkeys(ids, JobState(QueueState.UNKNOWN, trouble or "unknown to Slurm"))
    for line in said.splitlines():  # a requeued job has several lines: the last one counts
        job, words, elapsed, status = line.split("|")
        word, _, by = words.partition(" ")  # CANCELLED by 1234
        seen = _judge(
            word, f"exit status {status.split(':')[0]}" if word == "FAILED" else by, elapsed
        )
        if seen.state in (QueueState.PENDING, QueueState.RUNNING):
            seen = JobState(QueueState.UNKNOWN, f"left the queue; sacct still says {word}")
        states[job] = seen
    return states


def _judge(word: str, reason: str, elapsed: str) -> JobState:
    """A state from Slurm's words; one that this version does not know is UNKNOWN."""
    if word not in _STATES:
        return JobState(QueueState.UNKNOWN, f"Slurm says {word}", seconds(elapsed))
    said = _WORDS.get(word) or _WORDS.get(reason, reason)
    if word == "CANCELLED" and not said:
        said = "by scancel"  # one that Slurm cancels itself has a reason
    return JobState(_STATES[word], said, seconds(elapsed))


def seconds(text: str) -> float | None:
    """Seconds in Slurm's `[days-][hours:]minutes:seconds`; None where it knows none."""
    if not re.fullmatch(r"(\d+-)?(\d+:)?\d+:\d+", text):
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds + 86400 * int(days or 0))


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """A Slurm command, asked in the same way whatever the variables of the user or of a job say."""
    environment = {name: value for name, value in os.environ.items() if not _is_inherited(name)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT
    )


def call(*command: str, harmless: str = "") -> str:
    """Standard output of a Slurm command; ClusterError where it fails for a reason that matters."""
    try:
        done = run(*command)
    except FileNotFoundError:
        message = f"{command[0]} is not installed here: log in to the cluster, or --cluster local"
        raise ClusterError(message) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} has not answered for {_TIMEOUT} s: try again") from None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode and not (harmless and all(re.search(harmless, line) for line in lines)):
        said = "; ".join(lines) or f"exit status {done.returncode}"
        raise ClusterError(f"{command[0]} failed: {said}")
    return done.stdout


def _sacct(*arguments: str) -> tuple[str, str]:
    """What sacct prints and, where it does not answer, what it says instead."""
    try:
        return call("sacct", "-n", "-P", "-X", "-D", *arguments), ""
    except ClusterError as error:
        return "", str(error)
