"""Nodes that have failed, on record, so that nothing new is sent to one that fails again and again.

A few nodes make most of the trouble: 3 of 63 caused over half of the exclusions in a published
account (arXiv 2605.09370). A line is written for each start of a step that a node has ended; the
runs of one folder share the record. Node names are Slurm's.
"""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jobs.fence import Attempt
from jobs.step_folder import StepDir
from jobs.store import Run
from lact_asr.utils.errors import Unreadable
from lact_asr.utils.files import append_json, json_lines, number

DAYS = 7  # for which a failure counts: by then somebody has looked at the node
_OFTEN = 2  # failures within them: one may be a switch, or a person with a plug
_FILE = "nodes.jsonl"


class Failure(NamedTuple):
    """A start of a step that a node has ended."""

    node: str
    time: float  # seconds since 1970
    job: str


def nodes_to_exclude(runs: Path, scheduler: str) -> dict[str, int]:
    """How often each node has failed that nothing new is sent to; `scheduler` as in run.json."""
    since = time.time() - DAYS * 86400
    recent = Counter(each.node for each in _failures(runs, scheduler) if each.time > since)
    return {node: times for node, times in sorted(recent.items()) if times >= _OFTEN}


def explain(excluded: dict[str, int]) -> str:
    """One line about it; empty where nothing is left out."""
    times = ", ".join(f"{node} ({times} times)" for node, times in excluded.items())
    return f"nodes left out, which have failed within {DAYS} days: {times}" if times else ""


def note(runs: Path, scheduler: str, failure: Failure) -> None:
    """Write down a failure, unless it is on record."""
    if failure not in _failures(runs, scheduler):
        facts = {**failure._asdict(), "cause": "node_failed", "scheduler": scheduler}
        append_json(runs / _FILE, facts, sync=False)


def note_own(step: StepDir, attempt: Attempt) -> None:
    """Write down that this node, the first of the job, has failed the present start of a step."""
    node = os.environ.get("SLURMD_NODENAME", "")
    if node:
        run = Run(step.path.parents[1])
        failure = Failure(node, round(time.time()), attempt.job)
        note(run.path.parent, run.info().get("scheduler", ""), failure)


def note_earlier(step: StepDir, attempt: Attempt) -> None:
    """Write down which nodes, as Slurm's accounts say, have ended earlier starts of a job."""
    run = Run(step.path.parents[1])
    for failure in _of_job(attempt.job):
        note(run.path.parent, run.info().get("scheduler", ""), failure)


def _of_job(job: str) -> Iterator[Failure]:
    """Nodes that failed under a job; none where the site keeps no accounts."""
    for line in _ask("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "State,End,NodeList"):
        state, end, nodes = line.split("|", 2)  # NODE_FAIL|2026-01-01T12:00:00|n[1-2]
        if state == "NODE_FAIL":
            # which of several it was, sacct says from Slurm 23.02 on only (FailedNode)
            several = re.search(r"[\[,]", nodes)
            down = ("sinfo", "-h", "-N", "-n", nodes, "-t", "down,fail,no_respond", "-o", "%N")
            for node in {*_ask(*down)} if several else [nodes]:
                yield Failure(node, datetime.fromisoformat(end).timestamp(), job)


def _ask(*command: str) -> list[str]:
    """The lines that a program of Slurm's prints; none where it does not answer."""
    standard = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # sites write times in many ways
    try:
        said = subprocess.run(
            command, env=standard, capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return said.splitlines()


def _failures(runs: Path, scheduler: str) -> list[Failure]:
    """The failures on record of one Slurm; none where the record cannot be read."""
    try:
        lines = list(json_lines(runs / _FILE))
    except Unreadable:
        return []
    return [
        Failure(str(line.get("node")), number(line.get("time")) or 0.0, str(line.get("job")))
        for line in lines
        if line.get("scheduler") == scheduler
    ]
