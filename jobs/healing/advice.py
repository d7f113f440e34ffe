"""What to ask for next time: decided from what was asked for, what was used and what went wrong.

Pure functions. Each piece of advice says what it was reckoned from.
"""

import math
from typing import NamedTuple

ROOM = 1.3  # a request over what was used, for memory and time
SPARE_CORES = 0.2  # of a core, before another one is asked for
SHORT = (
    5.0  # s; of a shorter start, most processor time may be Python's, from before its first word
)
ONE_DAY = 86400.0  # s between faults, taken for a run that met none


class Advice(NamedTuple):
    """A setting, as it was and as to write it."""

    setting: str
    asked: str
    used: str
    write: str  # empty where nothing on record says
    why: str = ""


def time_limit(used: float) -> int:
    """Minutes to ask for, for work that took so many seconds; in fives."""
    return 5 * max(1, math.ceil(ROOM * used / 300))


def memory(used_gb: float) -> float:
    """GB to ask for; in quarters below 4."""
    needed = ROOM * used_gb
    return max(0.25, math.ceil(4 * needed) / 4) if needed < 4 else float(math.ceil(needed))


def more_memory(asked_gb: float, used_gb: float | None, most_gb: float) -> float:
    """GB to ask for after so many were too few: room over what was used, twice as many where nobody
    has measured that; the same again where no node has more.
    """
    wanted = 2 * asked_gb if used_gb is None else memory(max(used_gb, asked_gb))
    return max(asked_gb, min(wanted, most_gb))


def cores(cpu_seconds: float, seconds: float) -> int:
    """Cores of a process that was so long at work."""
    return max(1, math.ceil(cpu_seconds / seconds - SPARE_CORES))


def interval(save: float, recovery: float, between: float) -> float:
    """Seconds of work between checkpoints that lose the least (Daly 2006, the higher order's first
    terms; with `recovery` 0 and a cheap save Young's 1974 sqrt(2 save between)).

    save: s that work stands still for one; recovery: s from a fault to new work; between: mean s
    between faults. Where saving costs more than that allows, `between` itself.
    """
    if save >= 2 * between:
        return between
    return math.sqrt(2 * save * (between + recovery)) - save


def whole_steps(seconds: float, seconds_per_step: float) -> int:
    """Steps in an interval, at least one, to two digits: nobody's faults are known better."""
    steps = max(1.0, seconds / seconds_per_step)
    unit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return int(unit * max(1, round(steps / unit)))


def warning(step: float, validation: float, save: float) -> int:
    """Seconds before the limit that are enough to finish what is begun and save; tens.

    A step that is told to stop looks up after the step, or the validation, that it is in.
    """
    return max(10, 10 * math.ceil((ROOM * (step + validation + save) + 5) / 10))
