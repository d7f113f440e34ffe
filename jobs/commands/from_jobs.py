"""`follow` and `relay`: what a job calls as it ends; people have `resume`."""

import argparse
import os
from pathlib import Path

from jobs.commands.options import Add
from jobs.commands.subject import backend_of


def add(add_command: Add) -> None:
    """Both commands; `--help` does not list them."""
    parser = add_command("follow")
    parser.add_argument("step", type=Path)
    parser.set_defaults(act=follow)
    parser = add_command("relay")
    parser.add_argument("step", type=Path)
    parser.add_argument("--out-of-memory", metavar="REASON", default="", help="it needs more")
    parser.set_defaults(act=relay)


def follow(given: argparse.Namespace) -> int:
    """Submit what did not fit under the site's limit of jobs."""
    from jobs.scheduling.follow import Ending, follow
    from jobs.step_folder import StepDir
    from jobs.store import Run

    step = StepDir(given.step.absolute())
    run = Run(step.path.parents[1])
    follow(run, backend_of(run), Ending(step, os.environ.get("SLURM_JOB_ID", "")))
    return 0


def relay(given: argparse.Namespace) -> int:
    """Submit the job that goes on with a step, and point its dependents at that."""
    from jobs.fence import Attempt
    from jobs.scheduling.relay import relay
    from jobs.store import Run

    run = Run(given.step.absolute().parents[1])
    name, present = given.step.name, Attempt.present()
    print(relay(run, backend_of(run), name, present, given.out_of_memory))
    return 0
