"""`render`: a pipeline as standalone sbatch scripts."""

import argparse
from pathlib import Path

from jobs.commands.options import FILE, Add, add_cluster, add_set
from jobs.commands.subject import cluster_of, pipeline_of


def add(add_command: Add) -> None:
    """The command and its options."""
    parser = add_command("render", "write standalone sbatch scripts and submit_all.sh")
    parser.add_argument("file", metavar="FILE", help=FILE)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add_cluster(parser)
    add_set(parser)
    parser.set_defaults(act=render)


def render(given: argparse.Namespace) -> int:
    """Write the folder."""
    from jobs.render import render

    pipeline, document = pipeline_of(given)
    run = render(pipeline, cluster_of(given), document.text, given.out, overrides=given.set)
    print(f"{run.path / 'submit_all.sh'} submits {len(pipeline.steps)} steps")
    return 0
