"""`cancel`: end a run, or a step and all behind it."""

import argparse
from typing import TYPE_CHECKING

from jobs.commands.interrupted import when_stopped
from jobs.commands.options import Add
from jobs.commands.subject import backend_of
from jobs.errors import ClusterError, UserError
from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.scheduling.cancel import Cancelled
    from jobs.store import Run


def add(add_command: Add) -> None:
    """The command and its options."""
    parser = add_command("cancel", "cancel a run, or a step and all behind it")
    parser.add_argument("run", metavar="RUN[/STEP]", nargs="?", help="named always: no default")
    parser.set_defaults(act=cancel)


def cancel(given: argparse.Namespace) -> int:
    """Ask for the end, and say what came of it."""
    from jobs.scheduling.cancel import cancel
    from jobs.store import RunStore

    store = RunStore()
    if not given.run:
        name = store.find(None).name
        raise UserError(f"say what to cancel; the newest run is: {NAME} cancel {name}")
    run, step = store.find_step(given.run)
    backend = backend_of(run)
    asked = f"stopped; what was asked to end may still be there: {NAME} status {run.name}"
    with when_stopped(asked), run.lock():
        done = cancel(run, backend, [step.name] if step else None)
    _tell(done, run, given.run)
    return 0


def _tell(done: "Cancelled", run: "Run", asked: str) -> None:
    """Say what came of asking for the end; ClusterError where that is not known."""
    if done.ended:
        print(f"cancelled: {', '.join(done.ended)}")
    if done.ending:
        print(f"asked to end, and still there: {', '.join(done.ending)}")
        print(f"look: {NAME} status {run.name}")
    if done.trouble and done.ending:
        raise ClusterError(
            f"{done.trouble}: it is not known whether these jobs will end; to ask again: "
            f"{NAME} cancel {asked}"
        )
    if done.unsubmitted:
        print(f"not submitted any more: {', '.join(done.unsubmitted)}")
    if not done.ended and not done.ending and not done.unsubmitted:
        print("nothing to cancel: no job of it is in the queue")
