"""What Ctrl-C means to a command: it says what goes on without it, and the next command."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.store import Run


@contextlib.contextmanager
def when_stopped(say: str) -> Iterator[None]:
    """What Ctrl-C means in here; a sentence from further within comes first."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or say) from None


def watching(run: "Run") -> contextlib.AbstractContextManager[None]:
    """A command looks on."""
    return when_stopped(f"stopped looking; the run goes on: {NAME} status {run.name}")


def submitting(run: "Run") -> contextlib.AbstractContextManager[None]:
    """A command submits steps, one after the other."""
    return when_stopped(
        f"stopped while submitting; what is in the queue stays there, and for the rest: "
        f"{NAME} resume {run.name}"
    )
