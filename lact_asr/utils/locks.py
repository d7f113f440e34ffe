"""One job at a time: for folders that several pipelines share."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lact_asr.utils.errors import Interrupted


def never() -> bool:
    """A `should_stop` for callers whom nobody interrupts."""
    return False


def no_fence() -> None:
    """A `fence` for callers beside whom nobody writes."""


@contextlib.contextmanager
def exclusive_lock(path: Path, should_stop: Callable[[], bool] = never) -> Iterator[None]:
    """Hold the lock file `path`; another holder is waited for. The lock ends with the process."""
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    print(f"waiting for another job that holds {path}", flush=True)
                told = True
                if should_stop():
                    raise Interrupted from None
                time.sleep(0.5)
        yield
