"""`run`: submit a pipeline as a chain of jobs."""

import argparse

from jobs.commands import launching
from jobs.commands.options import FILE, Add, add_cluster, add_dry_run, add_set, add_wait
from jobs.commands.subject import cluster_of, pipeline_of
from jobs.program import NAME


def add(add_command: Add) -> None:
    """The command and its options."""
    parser = add_command(
        "run",
        "submit a pipeline as a chain of jobs",
        f"example: {NAME} run demo --set train.training.max_steps=300 --wait",
    )
    parser.add_argument("file", metavar="FILE", help=FILE)
    add_cluster(parser)
    add_set(parser)
    parser.add_argument(
        "--only", action="append", metavar="STEP", help="this step and what it needs (repeatable)"
    )
    add_dry_run(parser)
    add_wait(parser)
    parser.set_defaults(act=run)


def run(given: argparse.Namespace) -> int:
    """Submit a new run, or show what would be submitted."""
    (pipeline, document), cluster = pipeline_of(given), cluster_of(given)
    if given.dry_run:
        return launching.dry_run(pipeline, cluster)
    facts = {"overrides": given.set, "only": given.only or []}
    return launching.launch(pipeline, document.text, cluster, wait=given.wait, **facts)[1]
