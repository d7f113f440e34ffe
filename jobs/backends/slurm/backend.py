"""Steps as jobs of Slurm: submitted with submitit's script, judged by squeue and sacct.

Each job carries its step's token as its name; that is how a job is found whose submission was cut
short. The script is submitit's; the job runs the worker itself, not submitit's pickle of it: it
starts 0.2 s sooner, and runs even if nobody ever learnt its id, by which that pickle is named. The
call of sbatch is ours: submitit takes the first number after "job " in a site's banner for the id,
waits for ever, and pauses 0.2 s between two jobs.

submitit and pydantic are imported by `submit` alone (0.3 s): status and cancel need neither.
"""

import importlib
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.backends.base import JobState, QueueState, StepJob, SubmitUnclear
from jobs.backends.slurm.client import TIMEOUT, ask, call, sacct, seconds
from jobs.causes import told
from jobs.errors import ClusterError, Elsewhere, LimitReached, SubmitRefused
from jobs.healing.nodes import nodes_to_exclude
from lact_asr.utils.files import PRIVATE

if TYPE_CHECKING:
    from jobs.cluster import Cluster

_SCRIPT = ".submission_file_"  # what is handed to sbatch, while it is
# What sbatch says when nothing has been queued: its own complaints, and the controller's verdicts
# on a request (slurm_errno.c of Slurm 22.05), each from its first word. All else may come after the
# job was queued: "Socket timed out on send/recv operation", "Unexpected message received", "Invalid
# authentication credential" of the answer, "Unspecified error", no words at all.
_VERDICTS = (
    r"Invalid (partition|account|qos|wckey|(preferred )?feature|license|time|generic resource|GRES|"
    r"Trackable|node name|mcs_label|job array|--nice|user id|group id)",
    r"(No partition|Job script|Time limit) spec",
    r"(Node|Task|CPU) (count|distribution) specification invalid",
    r"Job (size specification|violates|dependency problem|--batch option)",
    r"(Requested|Required) (time|node|partition|account|operation|reservation|GRES|more tasks)",
    r"Access(/permission| denied to requested reservation)",
    r"User's group not permitted",
    r"More processors requested",
    r"Memory required by task",
    r"Pathname of a file, directory or other parameter too long",
    r"Burst Buffer (request|permission|resource)",
    r"Circular job dependency",
    r"Immediate execution impossible",
    r"Cannot request more threads",
    r"Multiple partition job request",
    r"System submissions disabled",
    r"X11 forwarding not available",
)
_REFUSED = (
    r"sbatch: (fatal|error: Invalid --|unrecognized option|invalid option|option )|"
    rf"Batch job submission failed: ({'|'.join(_VERDICTS)})"
)
# What it says of those that only count jobs. Slurm 22.05 names the limit on a line before its
# verdict (AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, AssocGrpSubmitJobsLimit), and other
# limits in the same way (QOSGrpCpuLimit); one that names none may mean either.
_LIMIT = re.compile(r"\b(?:Assoc|QOS)\w+Limit\b")
_ID = re.compile(r"(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?")  # a whole line of it
# Lines of squeue and sacct. Other jobs of the same user may have any name: "a|b", "two\nlines".
_IN_QUEUE = re.compile(r"(\d+)\|([^|]+)\|([^|]+)\|(.*)\|([^|]*)")
_IN_ACCOUNTS = re.compile(r"(\d+)\|(?P<name>.*)\|([^|]+)\|([^|]+)\|([^|]+)")
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
    "TIMEOUT": told("time_limit"),
    "OUT_OF_MEMORY": told("out_of_memory_host"),
    "NODE_FAIL": told("node_failed"),
    "PREEMPTED": told("preempted"),
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
    "DependencyNeverSatisfied": QueueState.STUCK,  # where kill-on-invalid-dep does not work
}


class SlurmBackend:
    """The backend of a cluster, given as run.json has it; the Slurm it talks to is the system's.

    `home` is the identity of the Slurm that a run belongs to and `owner` its user: on any other
    Slurm the same ids are other people's jobs. Without them (a new run) nothing is compared.
    """

    every = 10.0  # an administrator blocks whoever asks each second

    def __init__(
        self, cluster: "Cluster | Mapping[str, Any]", home: str = "", owner: str = ""
    ) -> None:
        self.cluster, self.home, self.owner = cluster, home, owner

    def identity(self) -> str:
        """`name at controller:port`; two sites may both have called their cluster "cluster"."""
        return _identity(call("scontrol", "show", "config"))

    def submit(self, job: StepJob, after: Sequence[str], behind: Sequence[str] = ()) -> str:
        """Queue one step; SubmitRefused where Slurm refuses, SubmitUnclear where nobody knows.

        It does not go to nodes that fail again and again, unless it could go nowhere else.
        """
        from jobs.cluster import Cluster

        cluster = Cluster.model_validate(self.cluster)
        excluded = nodes_to_exclude(job.directory.parents[2], self.home)
        try:
            return _queue(_without(cluster, excluded), job, after, behind)
        except LimitReached:
            raise
        except SubmitRefused:
            if not excluded:
                raise
        return _queue(cluster, job, after, behind)

    def find(self, job: StepJob) -> str | None:
        """The id of the newest job that carries the token, in the queue or in the accounts."""
        _wait_for_sbatch(job)
        return self.states({job.token: ""})[job.token].job or None

    def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """The state of each job: one squeue call, and one sacct call if squeue has forgotten some.

        UNKNOWN is a job that neither knows: it has left the queue, or came into it just now.
        ClusterError where squeue does not answer, since nothing may be concluded from that, and
        where this is not the Slurm that the run belongs to.
        """
        if not jobs:
            return {}
        config = ask("scontrol", "show", "config") if self.home else None
        try:
            states = _ask_squeue(jobs, self.owner)
        finally:  # "not your Slurm" says more than what a wrong squeue says
            if config:  # asked beside squeue it costs 1 ms instead of 7
                self._check_home(_identity(config.answer()))
        if missing := {token: job for token, job in jobs.items() if token not in states}:
            states |= _ask_sacct(missing)
        return states

    def _check_home(self, here: str) -> None:
        if here != self.home:
            raise Elsewhere(
                f"this run belongs to the Slurm {self.home}, and here is {here}, where its job ids "
                f"mean other jobs: log in there, or set SLURM_CONF to its slurm.conf"
            )

    def expect_home(self) -> None:
        """Elsewhere where this is not the Slurm that the run belongs to."""
        if self.home:
            self._check_home(self.identity())

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs in one call; those that have ended meanwhile are none of our business."""
        if ids:
            call("scancel", *ids, harmless="already completing or completed|Invalid job id")


def load_early() -> None:
    """Import submitit (60 ms) while others wait for Slurm and for the disk.

    They would get their turn only every 5 ms.
    """
    sys.setswitchinterval(0.0005)
    threading.Thread(target=importlib.import_module, args=["submitit.slurm.slurm"]).start()


def _without(cluster: "Cluster", nodes: Iterable[str]) -> "Cluster":
    """The cluster without some nodes, beside those that its own file leaves out."""
    excluded = [str(cluster.extra["exclude"])] if cluster.extra.get("exclude") else []
    names = ",".join([*excluded, *nodes])
    extra = {**cluster.extra, **({"exclude": names} if names else {})}
    return cluster.model_copy(update={"extra": extra})


def _queue(cluster: "Cluster", job: StepJob, after: Sequence[str], behind: Sequence[str]) -> str:
    """Submit a step's script; the job's id."""
    script = job.logs / f"{_SCRIPT}{job.token}.sh"
    script.touch(PRIVATE)  # it has the cluster's environment in it
    script.write_text(_script(cluster, job, after, behind))
    found = _sbatch(script)
    script.rename(job.logs / f"{found}_submission.sh")
    return found


def _script(cluster: "Cluster", job: StepJob, after: Sequence[str], behind: Sequence[str]) -> str:
    """submitit's script for one step, with our worker as its command."""
    from submitit.slurm.slurm import _make_sbatch_string

    from jobs.backends.slurm.sbatch import parameters, step_command

    told = parameters(cluster, job, after, behind)
    return str(_make_sbatch_string(step_command(cluster, job.directory), job.logs, **told))


def _sbatch(script: Path) -> str:
    """Submit a script; the job's id."""
    question = ask("sbatch", "--parsable", str(script))
    try:
        status, said, complaints = question.finish()
    except ClusterError as silence:
        raise SubmitUnclear(str(silence)) from silence
    complaints = complaints.strip() or "sbatch ended without a word"
    if status and re.search(_REFUSED, complaints):
        raise _refusal(complaints)
    if status:
        raise SubmitUnclear(complaints)
    return _job_id(said)


def _refusal(complaints: str) -> SubmitRefused:
    """What it means that sbatch has said this: too many jobs, or a job that is never taken."""
    limits = _LIMIT.findall(complaints)
    counts = any("Submit" in limit for limit in limits) if limits else "submit limit" in complaints
    return LimitReached(complaints) if counts else SubmitRefused(complaints)


def _job_id(said: str) -> str:
    """The id in sbatch's answer, the one line of which it is the whole.

    A site's banner may stand before it: "Welcome, job 3 of your quota of 50".
    """
    ids = {match[1] for line in said.splitlines() if (match := _ID.fullmatch(line.strip()))}
    if len(ids) != 1:
        raise SubmitUnclear(f"no job id is to be found in what sbatch said: {said.strip()!r}")
    return ids.pop()


def _wait_for_sbatch(job: StepJob) -> None:
    """An sbatch outlives a launcher that is killed, and may queue the step after we have looked."""
    import psutil

    begins = f"{job.logs}/{_SCRIPT}"
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        if not any(word.startswith(begins) for words in commands for word in words):
            return
        time.sleep(0.1)


def _identity(config: str) -> str:
    """The cluster's name and its controller's address in what `scontrol show config` prints."""
    facts = dict(re.findall(r"^(\S+)\s*= (.*?)\s*$", config, re.MULTILINE))
    names = ("ClusterName", "SlurmctldHost[0]", "SlurmctldPort")
    name, host, port = (facts.get(key, "?") for key in names)
    return f"{name} at {host.split('(')[0]}:{port}"


def _ask_squeue(jobs: Mapping[str, str], owner: str) -> dict[str, JobState]:
    """What squeue says, by token; it forgets a job MinJobAge (300 s) after its end.

    With a user it asks the controller for that user's jobs; with ids or names for all of them.
    Without -a ordinary users are not told of their own jobs in a partition with Hidden=YES.
    """
    command = ["squeue", "-a", "-h", "-t", "all", "-o", "%A|%T|%M|%j|%r"]
    states: dict[str, JobState] = {}
    for line in call(*command, *(["-u", owner] if owner else [])).splitlines():
        if not (told := _IN_QUEUE.fullmatch(line)):
            continue  # part of another job's name
        job, word, elapsed, name, reason = told.groups()
        if name in jobs and int(job) >= int(((known := states.get(name)) and known.job) or 0):
            states[name] = _in_queue(word, reason, elapsed)._replace(job=job)
    return states


def _in_queue(word: str, reason: str, elapsed: str) -> JobState:
    """A state from squeue's words; what it lists with a word that we do not know is alive."""
    seen = _judge(word, reason, elapsed)
    if word == "PENDING":
        return seen._replace(state=_PENDING.get(reason, seen.state))
    if word == "PREEMPTED":
        return seen._replace(state=QueueState.PENDING)  # on its way back into the queue
    if seen.state is QueueState.UNKNOWN:  # EXPEDITING came with Slurm 25.11
        return seen._replace(state=QueueState.RUNNING if seen.elapsed else QueueState.PENDING)
    return seen


def _ask_sacct(jobs: Mapping[str, str]) -> dict[str, JobState]:
    """What sacct says, by token, of jobs that squeue does not have; a site may have it off."""
    said, trouble = "", ""
    if ids := [job for job in jobs.values() if job]:
        said, trouble = sacct("-j", ",".join(ids))
    if names := [token for token, job in jobs.items() if not job]:
        # by name sacct looks at today only, and at jobs that began some 4 s ago or earlier
        more, trouble = sacct("--name", ",".join(names), "-S", "now-30days")
        said += more
    states = dict.fromkeys(jobs, JobState(QueueState.UNKNOWN, trouble or "unknown to Slurm"))
    for line in said.splitlines():  # a requeued job has several lines: the last one counts
        told = _IN_ACCOUNTS.fullmatch(line)
        if not told or told["name"] not in jobs:
            continue  # another cluster's job, or one from before the ids began anew
        job, name, words, elapsed, status = told.groups()
        word, _, by = words.partition(" ")  # CANCELLED by 1234
        seen = _judge(
            word, f"exit status {status.split(':')[0]}" if word == "FAILED" else by, elapsed
        )
        if seen.state in (QueueState.PENDING, QueueState.RUNNING):
            seen = JobState(QueueState.UNKNOWN, f"left the queue; sacct still says {word}")
        states[name] = seen._replace(job=job)
    return states


def _judge(word: str, reason: str, elapsed: str) -> JobState:
    """A state from Slurm's words; one that this version does not know is UNKNOWN."""
    if word not in _STATES:
        return JobState(QueueState.UNKNOWN, f"Slurm says {word}", seconds(elapsed))
    said = _WORDS.get(word) or _WORDS.get(reason, reason)
    if word == "CANCELLED" and (not said or said.startswith("by ")):
        # squeue tells no reason, sacct by whom; a job that Slurm cancels itself has a reason
        said = f"{told('killed_by_hand')} ({said or 'by scancel'})"
    return JobState(_STATES[word], said, seconds(elapsed))
