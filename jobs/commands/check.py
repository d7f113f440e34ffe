"""`check`: every mistake in a pipeline file, at once, and the recipe that it comes to."""

import argparse
import sys
from itertools import chain
from typing import TYPE_CHECKING

from jobs.commands.options import FILE, Add, add_cluster, add_set
from jobs.commands.subject import cluster_of, pipeline_of, preflight

if TYPE_CHECKING:
    from jobs.pipeline import Pipeline
    from jobs.reading.yaml12 import Document


def add(add_command: Add) -> None:
    """The command and its options."""
    parser = add_command("check", "report every mistake in a pipeline file; nothing is created")
    parser.add_argument("file", metavar="FILE", help=FILE)
    add_cluster(parser, "also ask this cluster: partitions, limits, accounts, paths, disk")
    add_set(parser)
    parser.add_argument(
        "--effective",
        action="store_true",
        help="print the recipe in force of every step of training: each setting with its source, "
        "the model's size, GPU memory (reckoned), steps an epoch",
    )
    parser.set_defaults(act=check, only_shows=True)


def check(given: argparse.Namespace) -> int:
    """Read the file, and ask the cluster where one is named."""
    pipeline, document = pipeline_of(given)
    if given.cluster:
        preflight(pipeline, cluster_of(given))
    _tell_recipes(pipeline, document, given.effective)
    count = len(pipeline.steps)
    print(f"{given.file}: {count} {'step' if count == 1 else 'steps'}, no mistakes")
    return 0


def _tell_recipes(pipeline: "Pipeline", document: "Document", effective: bool) -> None:
    """What the file changes of its presets; with --effective the whole recipe of each training."""
    from jobs.printing import print_recipe
    from jobs.reading.effective import facts, overridden, trains, values
    from jobs.reading.gates import differences, idle

    for line in chain(*(tell(pipeline, document) for tell in (overridden, differences, idle))):
        print(line, file=sys.stderr)
    for step in filter(trains, pipeline.steps if effective else ()):
        print_recipe(f"{step.name} ({step.kind})", values(step, document), facts(step))
