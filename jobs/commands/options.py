"""Options that several commands have, and how a command adds itself."""

import argparse
from typing import Protocol

FILE = "pipeline file, or the name of one that comes with trainyard: demo"


class Add(Protocol):
    """Adds a command to the command line; `about` is its line in the list of commands."""

    def __call__(self, name: str, about: str = "", epilog: str = "") -> argparse.ArgumentParser: ...


def add_run(parser: argparse.ArgumentParser) -> None:
    """Which run it is about."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="default: the newest run")


def add_cluster(parser: argparse.ArgumentParser, about: str = "") -> None:
    """Which cluster it is about."""
    text = about or "a file in slurm_templates/clusters, or a path; `local` is this machine"
    parser.add_argument("--cluster", metavar="NAME", help=text)


def add_set(parser: argparse.ArgumentParser) -> None:
    """What is to differ from the pipeline file."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="step.path=value",
        help="override a value of the file (repeatable); the value is YAML",
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Whether it is to be shown only."""
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted")


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Whether to stay."""
    parser.add_argument("--wait", action="store_true", help="stay until every step has ended")
