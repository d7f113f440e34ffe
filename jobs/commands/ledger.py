"""`ledger`: where every second of a run went."""

import argparse
from typing import TYPE_CHECKING

from jobs.commands.options import Add, add_run
from jobs.commands.subject import backend_of
from jobs.errors import ClusterError
from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.healing.stays import Accounts
    from jobs.store import Run

_EPILOG = f"""\
queued      could run, and was in the queue; not part of what was allocated
starting    Python, data, model: until the first training step begins
useful      training steps; in a step of another kind all work that led to its result
replayed    training steps that an earlier start had computed and not saved
stalled     waiting for data
validating  on the dev data
saving      standing still for a checkpoint
idle        allocated, and nothing came of it: killed since the last line of metrics, hung, leaving
unknown     not on record, or not yet
ETTR        useful / allocated

Everything comes from the run's files; Slurm's accounts are asked once, for when jobs began
and ended and for memory. A run that goes on is shown as it is.

example: {NAME} ledger RUN --json"""


def add(add_command: Add) -> None:
    """The command and its options."""
    about = "where every second of a run went, and what to ask for next time"
    parser = add_command("ledger", about, _EPILOG)
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="the same as data")
    parser.set_defaults(act=ledger, only_shows=True)


def ledger(given: argparse.Namespace) -> int:
    """Print it."""
    import time

    from jobs.healing.ledger import make
    from jobs.healing.statement import lines
    from jobs.printing import print_json
    from jobs.store import RunStore

    run = RunStore().find(given.run)
    made = make(run, _accounts(run), time.time())
    if given.json:
        print_json(made)
    else:
        print("\n".join(lines(made)))
    return 0


def _accounts(run: "Run") -> "Accounts":
    """What the cluster is asked once, about all jobs of a run."""
    from jobs.healing.stays import Accounts

    tries = [each for name in run.names() for each in run.step(name).submissions()]
    jobs = {each.token: each.job for each in tries if each.job}
    if run.info()["cluster"]["backend"] == "slurm":
        from jobs.backends.slurm.accounts import allocations

        found, trouble = allocations(jobs)
        return Accounts(found, trouble=f"Slurm's accounts: {trouble}" if trouble else "")
    try:
        states = backend_of(run).states(jobs)
    except ClusterError as error:  # another machine than the run's
        return Accounts(trouble=str(error))
    return Accounts(living={seen.job for seen in states.values() if seen.alive})
