"""`status`: the state of every step of a run."""

import argparse

from jobs.commands.interrupted import watching
from jobs.commands.options import Add, add_run
from jobs.commands.subject import run_of


def add(add_command: Add) -> None:
    """The command and its options."""
    parser = add_command(
        "status", "the state of every step; exit 1 where one has ended without success"
    )
    add_run(parser)
    parser.add_argument("--watch", action="store_true", help="redraw until nothing is active")
    parser.add_argument("--json", action="store_true", help="the same as data")
    parser.set_defaults(act=show, only_shows=True)


def show(given: argparse.Namespace) -> int:
    """Print it once, or until nothing is active."""
    from jobs import status
    from jobs.printing import print_json
    from jobs.scheduling.observe import Queue

    run, backend = run_of(given)
    if given.watch:
        with watching(run):
            return status.exit_code(status.watch(run, Queue(backend, backend.every)))
    found = status.describe(run, Queue(backend))
    if given.json:
        print_json(found)
    else:
        status.print_status(found)
    return status.exit_code(found)
