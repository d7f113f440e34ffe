"""`logs`: print or follow the log of a step."""

import argparse
import sys

from jobs.commands.interrupted import watching
from jobs.commands.options import Add
from jobs.commands.subject import backend_of
from jobs.errors import UserError


def add(add_command: Add) -> None:
    """The command and its options."""
    parser = add_command("logs", "print or follow the log of a step")
    parser.add_argument("step", metavar="RUN/STEP", help="the step; /STEP means the newest run")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the step ends")
    parser.add_argument("--grep", metavar="RE", help="only lines that match this expression")
    parser.add_argument("--rank", type=_amount, default=0, metavar="N", help="process (default 0)")
    parser.add_argument(
        "--lines", type=_amount, default=100, metavar="N", help="how many (default 100)"
    )
    parser.set_defaults(act=logs, only_shows=True)


def _amount(text: str) -> int:
    """0, 1, 2 ...; one that is too large for a count of lines means all of them."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2 ...")
    return min(int(text[:30]), sys.maxsize)


def logs(given: argparse.Namespace) -> int:
    """Print the log of a step; UserError where none is named."""
    from jobs.logs import logs
    from jobs.scheduling.observe import Queue
    from jobs.store import RunStore

    run, step = RunStore().find_step(given.step)
    if step is None:
        names = ", ".join(f"{run.name}/{step['name']}" for step in run.steps())
        raise UserError(f"name a step: {names}")
    backend = backend_of(run)
    with watching(run):
        return logs(
            run,
            step,
            Queue(backend, backend.every),
            rank=given.rank,
            lines=given.lines,
            pattern=given.grep,
            follow=given.follow,
        )
