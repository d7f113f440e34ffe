"""Writing aside: a thread makes files of what a step boundary has left, while training goes on.

The next step changes weights and moments in place, so what is written is a copy in host memory, 12
bytes a weight with AdamW's moments. It is made on the thread that trains; files, checksums, syncs
and renames are the other's, which holds no lock that training needs: torch and safetensors write,
and hashlib reckons, without Python's global one. The checkpoints of one step at most, the best
model and the numbered one, are in memory at a time: those of a later step wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


def copied(value: Any) -> Any:
    """A tensor, or a mapping or list of them, as it is now: in host memory of its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value))
    return value


class Saver:
    """Does one piece of work after the other, on a thread of its own.

    After one that failed none is begun: a checkpoint may count on the one before it. `check` and
    `finish` raise what went wrong. Leaving the context waits for what is under way; where another
    exception ends it, what went wrong here is told to `say`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._given: deque[Future[None]] = deque()
        self._failed = threading.Event()
        self._step = 0

    def room(self, step: int) -> None:
        """Wait until nothing of earlier steps is left to be written."""
        if step != self._step:
            self.finish()
        self._step = step

    def put(self, work: Callable[[], None]) -> None:
        """Do this after what was put before."""
        self._given.append(self._pool.submit(self._do, work))

    def check(self) -> None:
        """Raise what went wrong so far."""
        while self._given and self._given[0].done():
            self._given.popleft().result()

    def wait(self) -> None:
        """Until all is written, or was given up."""
        for each in self._given:
            each.exception()

    def finish(self) -> None:
        """Wait until all is written; raise what went wrong."""
        self.wait()
        self.check()

    def _do(self, work: Callable[[], None]) -> None:
        if self._failed.is_set():
            return
        try:
            work()
        except BaseException:
            self._failed.set()
            raise

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.wait()
        self._pool.shutdown()
        if error is None:
            return self.check()
        for trouble in filter(None, (each.exception() for each in self._given)):
            self._say(f"A checkpoint was not written: {trouble}")
