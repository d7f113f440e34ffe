"""What Ctrl-C means to a command: it says what goes on without it, and the next command."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.store import Run


_MOMENT = 0.1  # seconds


@contextlib.contextmanager
def heard_everywhere() -> Iterator[None]:
    """Ctrl-C counts in here wherever it arrives. Python throws away what is raised in a destructor,
    such as that of a `Popen` (seen: `run` went on waiting): there it comes again a moment later.
    """
    before = sys.unraisablehook

    def thrown_away(found: "sys.UnraisableHookArgs") -> None:
        if found.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)
        else:
            before(found)

    sys.unraisablehook = thrown_away
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = before


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
