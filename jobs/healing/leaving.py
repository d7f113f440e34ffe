"""A step that has saved before its time limit: where it goes on, and whether it should.

A successor, submitted by the job itself, starts a second after it; back in the queue under its own
id a job waits for as long as Slurm's credentials live, 121 s before Slurm 25.11. So the first is
tried, and the second is what is left where the site does not have it.

Measured on a private Slurm whose credentials live 5 s, at load 13 on 2 cores: 5.6 to 7.9 s from the
end of saving until the worker runs again in a successor, 12.1 to 13.6 s after a requeue.
"""

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jobs.fence import Attempt
from jobs.healing.spans import STARTS
from jobs.healing.stays import WARNING
from jobs.step_folder import StepDir

_PATIENCE = 3  # time limits met without progress after which a step is not started again
_LONGEST = 40.0  # seconds that a successor may take to come into the queue: the warning is 120 s
_KILLED = 3  # how often it is tried, where the process that does it is killed


def hand_over(step: StepDir, *wishes: str) -> str:
    """Have a step go on in a job behind this one; empty, or why it does not.

    That is done by a process of its own: it submits with the variables of the launcher.
    """
    from jobs.snapshot import ROOT  # 10 ms that every step would pay

    command = [sys.executable, str(ROOT / "launch.py"), "relay", str(step.path), *wishes]
    refusal = ""
    for _ in range(_KILLED):
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LONGEST
            )
        except subprocess.TimeoutExpired:
            return f"it took more than {_LONGEST:.0f} s"
        print(done.stdout, end="", flush=True)
        if not done.returncode:
            return ""
        refusal = done.stderr.strip() or f"it ended with status {done.returncode}"
        if done.returncode > 0:
            break
    return refusal.splitlines()[-1]


def requeue(job: str) -> str:
    """Put the running job back into the queue under its own id; empty, or why Slurm did not.

    A request that Slurm ends together with the job was heard, or nobody needs it any more.
    """
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    refused = done.returncode > 0
    return (done.stderr.strip() or f"exit status {done.returncode}") if refused else ""


def was_warned(events: Sequence[Mapping[str, Any]], attempt: Attempt) -> bool:
    """Whether this very start has saved before its limit: what was to come then was cut short, by
    the death of the process.
    """
    begins = [i for i, event in enumerate(events) if event["event"] in STARTS and "host" in event]
    mine = events[begins[-1] :] if begins else []
    return any(
        event["event"] == "interrupted"
        and event.get("signal") == WARNING
        and (mine[0].get("job"), mine[0].get("restart")) == (attempt.job, attempt.restart)
        for event in mine
    )


def stuck(events: Sequence[Mapping[str, Any]], jobs: Collection[str]) -> str:
    """What to change, where the last time limits were met without progress, else empty.

    `jobs`: the present one and those that it goes on for. Preemption says nothing of progress, nor
    do the limits of a job that `resume` has replaced.
    """
    limits = [
        event.get("position")
        for event in events
        if event.get("signal") == WARNING and event.get("job") in jobs
    ][-_PATIENCE:]
    reached = [-1 if position is None else position for position in limits]
    if len(reached) < _PATIENCE or max(reached[1:]) > reached[0]:
        return ""
    met = f"met its time limit {_PATIENCE} times"
    if limits[-1] is None:
        return (
            f"{met} and did not say how far it came: write a longer resources.time, or let the "
            "program write its position to the file $TRAINYARD_POSITION"
        )
    return (
        f"{met} at position {limits[-1]} without getting further: write a longer resources.time "
        "or save more often"
    )
