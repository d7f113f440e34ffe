"""More memory for a step that has run out of it: what it used, and what there is to be had."""

from collections.abc import Mapping
from typing import Any

from jobs.backends.slurm.accounts import allocations
from jobs.backends.slurm.memory import most_memory
from jobs.errors import ClusterError
from jobs.fence import Attempt
from jobs.healing.advice import more_memory
from jobs.healing.remedies import MEMORY, Remedy
from jobs.pipeline import Resources
from jobs.scheduling.recover import resources
from jobs.step_folder import StepDir
from jobs.store import Run
from lact_asr.utils.files import number


def with_more_memory(run: Run, step: Mapping[str, Any], old: Attempt, reason: str) -> Remedy:
    """The remedy for a step that had too little in a job; ClusterError where there is no more."""
    folder = run.step(step["name"])
    asked = resources(run, step)
    most = most_memory(run.info()["cluster"].get("partition", ""))
    more = more_memory(asked.memory_gb, _used(folder, old, asked), most)
    if more <= asked.memory_gb:
        raise ClusterError(f"no node of its partition has more than {most:g} GB")
    return Remedy("out_of_memory_host", reason, {MEMORY: (asked.memory_gb, more)})


def _used(folder: StepDir, old: Attempt, asked: Resources) -> float | None:
    """GB on a node, as the processes of a job and Slurm's accounts have them; None for unknown."""
    own = [event for event in folder.events() if event.get("job") == old.job]
    peaks = [number(event.get("peak_memory_gb")) for event in own]
    peaks += [stay.memory_gb for stay in allocations({old.token: old.job})[0]]
    largest = max(filter(None, peaks), default=None)
    return None if largest is None else largest * asked.processes_per_node
