"""Slurm's commands, asked in the same way whatever the variables of the user or of a job say."""

import os
import re
import subprocess
from typing import NamedTuple

from jobs.errors import ClusterError, Unreachable

TIMEOUT = 60  # seconds for one call; Slurm's own MessageTimeout is 10 s to 100 s
# What a client says of a controller that is restarted, overloaded or gone (slurm_errno.c of 22.05).
_SILENT = re.compile(
    r"Unable to contact|timed out|Connection (refused|reset)|Zero Bytes|Transport endpoint"
)
# What one says where Slurm's commands are installed and no cluster is named (22.05).
_NO_CLUSTER = re.compile(
    r"Could not establish a configuration source|Unable to process configuration file"
)
# Variables of a job that we may be in, and of users: they would beat what a command asks for.
_INHERITED = (
    *("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "SQUEUE_", "SACCT_", "SCANCEL_"),
    *("SCONTROL_", "SINFO_", "SACCTMGR_"),
)
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")  # of a torchrun that we may be in


def is_inherited(name: str) -> bool:
    return name in _RANKS or (name.startswith(_INHERITED) and name != "SLURM_CONF")


def seconds(text: str) -> float | None:
    """Seconds in Slurm's `[days-][hours:]minutes:seconds`; None where it knows none."""
    if not re.fullmatch(r"(\d+-)?(\d+:)?\d+:\d+", text):
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds + 86400 * int(days or 0))


def partitions(said: str) -> dict[str, dict[str, str]]:
    """MaxTime, Default ... of each partition in what `scontrol show partition -o` prints."""
    lines = (line.split() for line in said.splitlines())
    facts = [dict(word.split("=", 1) for word in words if "=" in word) for words in lines]
    return {each["PartitionName"]: each for each in facts if "PartitionName" in each}


class Question(NamedTuple):
    """A Slurm command that has been started."""

    program: str
    process: "subprocess.Popen[str]"

    def finish(self) -> tuple[int, str, str]:
        """Exit status, standard output and error; Unreachable after a minute."""
        try:
            said, complaints = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            message = f"{self.program} has not answered for {TIMEOUT} s: try again"
            raise Unreachable(message) from None
        return self.process.returncode, said, complaints

    def answer(self, harmless: str = "") -> str:
        """Standard output; ClusterError where the command fails for a reason that matters."""
        status, said, complaints = self.finish()
        lines = [line for line in complaints.splitlines() if line.strip()]
        if status and not (harmless and all(re.search(harmless, line) for line in lines)):
            reason = "; ".join(lines) or f"exit status {status}"
            kind = Unreachable if _SILENT.search(complaints) else ClusterError
            if kind is ClusterError and _NO_CLUSTER.search(complaints):
                reason += f"\n{_where_to_look()}"
            raise kind(f"{self.program} failed: {reason}")
        return said


def _where_to_look() -> str:
    named = os.environ.get("SLURM_CONF")
    file = f"in SLURM_CONF={named}" if named else "and SLURM_CONF is not set"
    return (
        f"Slurm's commands are installed here, but no cluster is configured {file}: log in to the "
        "cluster, set SLURM_CONF to its slurm.conf, or write --cluster local"
    )


def ask(*command: str) -> Question:
    """Start a Slurm command, asked in the same way whatever the variables of the user or of a job
    say; ClusterError where Slurm is not installed.
    """
    environment = {name: value for name, value in os.environ.items() if not is_inherited(name)}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(  # names that others gave their jobs may be any bytes
            command, env=environment, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
    except FileNotFoundError:
        message = f"{command[0]} is not installed here: log in to the cluster, or --cluster local"
        raise ClusterError(message) from None
    return Question(command[0], process)


def call(*command: str, harmless: str = "") -> str:
    """Standard output of a Slurm command; ClusterError where it fails for a reason that matters."""
    return ask(*command).answer(harmless)


def sacct(*arguments: str) -> tuple[str, str]:
    """What sacct prints and, where it does not answer, what it says instead."""
    fields = ["-o", "JobIDRaw,JobName,State,Elapsed,ExitCode"]
    try:
        return call("sacct", "-n", "-P", "-X", "-D", *fields, *arguments), ""
    except ClusterError as error:
        return "", str(error)
