"""The command line: `main` finds the command and runs it, each is a file in `jobs/commands`.

Exit codes: 0 fine, 1 the cluster refused or a step failed, 2 the user can mend it. A user's mistake
never shows a traceback, a bug always does. Each command imports what it needs when it runs: the
words of all of them are read at every start.
"""

import argparse
import gc
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs.commands import (
    cancel,
    check,
    from_jobs,
    kinds,
    ledger,
    logs,
    on_checkpoint,
    rehearse,
    render,
    resume,
    run,
    status,
)
from jobs.commands.interrupted import heard_everywhere
from jobs.errors import UserError, nearest
from jobs.output import Output, over
from jobs.program import NAME

# as `--help` lists them
_COMMANDS = (
    run,
    check,
    kinds,
    render,
    rehearse,
    status,
    logs,
    cancel,
    resume,
    ledger,
    on_checkpoint,
    from_jobs,
)

_ABOUT = f"""\
Training pipelines on Slurm, or on this machine: one YAML file names the steps.

  {NAME} check FILE                 every mistake in a pipeline file, at once
  {NAME} run FILE --cluster NAME    submit all steps; --wait stays until they have ended
  {NAME} status                     the newest run: state, progress, why a step failed
  {NAME} logs RUN/STEP -f           follow a step's log
  {NAME} resume RUN                 submit what is left after a failure is mended

FILE is a path, or the name of a pipeline that comes with trainyard, such as demo.
RUN is a folder, a run's name, a unique beginning of it, or nothing for the newest. Runs are kept
in $TRAINYARD_RUNS (default ./runs). Where Slurm is not installed, steps run on this machine.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of every command; `act` of what it has parsed runs the command."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog=NAME, description=_ABOUT, formatter_class=raw)
    about = "what is installed here, for a report of a mistake"
    top.add_argument("--version", action=_Version, nargs=0, help=about)
    top.set_defaults(only_shows=False)  # a command of which nobody reads anything may end
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, about: str = "", epilog: str = "") -> argparse.ArgumentParser:
        shown: dict[str, Any] = {"help": about} if about else {}
        added = commands.add_parser(
            name, description=about, epilog=epilog, formatter_class=raw, **shown
        )
        added.set_defaults(parser=added)
        return added

    for command in _COMMANDS:
        command.add(add)
    return top


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for; ends the process where a word is unknown to its command."""
    given, unknown = parser().parse_known_args(arguments)
    if unknown:
        options = re.findall(r"--[a-z][a-z-]*", given.parser.format_usage())
        hints = (f"{word}: {nearest(word, options)}" for word in unknown if word.startswith("-"))
        given.parser.error(f"no such argument: {next(hints, ' '.join(unknown))}")
    return given


class _Version(argparse.Action):
    """Prints what is installed, which nothing else waits for, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from jobs.snapshot import installed

        print(installed())
        parser.exit()


def command() -> NoReturn:
    """Be the process of one command."""
    gc.set_threshold(100_000)  # what imports make stays: looking for garbage in it takes 8 ms
    _speak_utf8()
    _open_what_is_closed()
    (output, sys.stdout), (_, sys.stderr) = over(sys.stdout), over(sys.stderr)
    code = main(output=output)
    if output.failed and not isinstance(output.failed, BrokenPipeError):
        print(f"the output could not be written: {output.failed.strerror}", file=sys.stderr)
    _leave(code)


def main(arguments: Sequence[str] | None = None, output: Output | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a log may hold what a terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        given = parse(arguments)
        if output:
            output.raises = given.only_shows
        _expect_folder()
        with heard_everywhere():
            code = int(given.act(given))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if output is None or error is not output.failed:
            raise
        return int(not isinstance(error, BrokenPipeError))  # `launch.py logs ... | head` is fine
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130


def _open_what_is_closed() -> None:
    """After `>&-` nobody listens; the next file to be opened would have the output's number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            kept = os.open(os.devnull, os.O_RDWR)  # as long as the process
            setattr(sys, name, open(kept, "r+", closefd=False))  # noqa: SIM115


def _expect_folder() -> None:
    """UserError where the working folder is no more: all that is read and written begins there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder that you are in has been removed: cd to another one") from None


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode (PEP 540) where the locale writes text in another way.

    Pipeline files, names of files and all that we write are UTF-8: in a locale of ASCII they could
    not be read, and in one of Latin-1, as old clusters have, `größe` would be another file.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _leave(code: int) -> NoReturn:
    """End the process: Python's own way out frees, object by object, what the imports have made,
    and takes 60 ms with pydantic and submitit, 10 ms without.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
