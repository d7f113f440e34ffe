"""A controller that is restarted answers again: what a person has asked for waits that long."""

import time
from collections.abc import Callable
from typing import TypeVar

from jobs.errors import Unreachable

_LONGEST = 300.0  # seconds from the first silence to the last try
_PAUSES = (1.0, 30.0)  # seconds between two tries: the first, the longest
_Answer = TypeVar("_Answer")


def patiently(act: Callable[[], _Answer]) -> _Answer:
    """What `act` returns, as soon as the cluster answers; Unreachable where it does not in time.

    It may be called many times: what it asks for must not happen twice by that.
    """
    pause, longest = _PAUSES
    end = time.monotonic() + _LONGEST
    while True:
        try:
            return act()
        except Unreachable as error:
            left = end - time.monotonic()
            if left < pause:
                raise
            reason = str(error).splitlines()[0]
            print(f"{reason}\ntrying again in {pause:.0f} s, for {left:.0f} s at most", flush=True)
        time.sleep(pause)
        pause = min(2 * pause, longest)
