"""`kinds` and `schema`: what a pipeline file may say, for people and for editors."""

import argparse

from jobs.commands.options import Add
from jobs.errors import UserError, nearest
from jobs.program import NAME


def add(add_command: Add) -> None:
    """Both commands and their options."""
    parser = add_command(
        "kinds", "what steps can do, with every setting, its default, unit and meaning"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one kind, in full")
    parser.add_argument("--preset", default="", metavar="P", help="with what this preset sets")
    parser.set_defaults(act=kinds, only_shows=True)
    schema = add_command("schema", "print the JSON Schema of pipeline files, for editors")
    schema.set_defaults(act=print_schema, only_shows=True)


def kinds(given: argparse.Namespace) -> int:
    """One kind in full, or a line of each."""
    from jobs import kinds
    from jobs.healing.remedies import defaults
    from jobs.printing import print_kind
    from jobs.reading.json_schema import describe, summary

    if not given.name:
        for name in kinds.NAMES:
            print(f"{name:<10} {summary(kinds.load(name))}")
        print(f"\n{NAME} kinds NAME: every setting, with default, unit and meaning")
        return 0
    if given.name not in kinds.NAMES:
        raise UserError(f"no kind {given.name!r}: {nearest(given.name, kinds.NAMES)}")
    about = describe(given.name, given.preset)
    print_kind({**about, "remedies": defaults([row["name"] for row in about["settings"]])})
    return 0


def print_schema(given: argparse.Namespace) -> int:
    """The JSON Schema of pipeline files."""
    from jobs.printing import print_json
    from jobs.reading.json_schema import json_schema

    print_json(json_schema())
    return 0
