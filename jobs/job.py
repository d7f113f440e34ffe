"""What a kind's `run()` is handed: where it may write, who it is, and whom to ask and tell."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from lact_asr.utils.disturbance import undisturbed
from lact_asr.utils.locks import no_fence

SAVED = 75  # exit status of what has saved and is to be started again (EX_TEMPFAIL)


def no_signal() -> int | None:
    """A `signal` for callers whom no cluster interrupts."""
    return None


class Job(NamedTuple):  # a dataclass would take 12 ms of every step
    """One process of a running step.

    Rank 0 keeps the record: on the other ranks `report` and `event` do nothing.
    """

    directory: Path  # the step's own folder: checkpoints/ and artefacts go here
    rank: int
    world_size: int
    local_rank: int
    report: Callable[[Mapping[str, object]], None]  # one line of metrics.jsonl
    event: Callable[..., None]  # event(name, **facts): one line of events.jsonl
    should_stop: Callable[[], bool]  # true once the cluster wants the step to save and leave
    signal: Callable[[], int | None] = no_signal  # the newest signal that said so
    # called right before anything else is written: raises where a newer start has taken over
    fence: Callable[[], None] = no_fence
    disturb: Callable[..., None] = (
        undisturbed  # called before each training step: `jobs.healing.faults`
    )
