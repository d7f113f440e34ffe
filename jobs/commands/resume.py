"""`resume`: submit what is left of a run, as it was or with what is to be different."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.commands.interrupted import submitting, when_stopped
from jobs.commands.launching import report
from jobs.commands.options import Add, add_run, add_set, add_wait
from jobs.commands.subject import only, preflight, run_of
from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.backends.base import Backend
    from jobs.store import Run

_EPILOG = f"""\
A failed step goes on from its checkpoint. What has succeeded is kept, unless it is touched by
a changed setting, or behind a step that is; what a step had done before it is done anew
stays in its folder as earlier.N.

example: {NAME} resume RUN --set train.resources.memory_gb=64
         {NAME} resume RUN changed.yaml --redo evaluate"""


def add(add_command: Add) -> None:
    """The command and its options."""
    about = "submit what is left of a run: failed, cancelled and lost steps"
    parser = add_command("resume", about, _EPILOG)
    add_run(parser)
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="a pipeline in place of the one it has"
    )
    add_set(parser)
    parser.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="STEP",
        help="do this step and what is behind it anew, from the beginning (repeatable)",
    )
    parser.add_argument("--fresh-code", action="store_true", help="with the code as it is now")
    add_wait(parser)
    parser.set_defaults(act=resume)


def resume(given: argparse.Namespace) -> int:
    """Mend the run where that is asked for, and submit what is left of it."""
    from jobs.reading.shipped import find_pipeline
    from jobs.scheduling.submit import submit_patiently

    run, backend = run_of(given)
    file = find_pipeline(given.file).absolute() if given.file else None
    with submitting(run):
        _prepare(run, backend, given, file)
        todo = submit_patiently(run, backend)
    return report(run, backend, todo, given.wait)


def _prepare(run: "Run", backend: "Backend", given: argparse.Namespace, file: Path | None) -> None:
    """Make a run ready to go on with what is different about it."""
    from jobs.scheduling.create import renew_code
    from jobs.scheduling.patience import patiently

    patiently(backend.expect_home)  # with no job left to ask about, nothing else would tell
    with run.lock():
        if file or given.set or given.redo:
            with when_stopped("stopped; nothing was submitted: the same command does the rest"):
                _mend(run, backend, file, given.set, given.redo)
        if given.fresh_code:
            renew_code(run)


def _mend(
    run: "Run", backend: "Backend", file: Path | None, overrides: list[str], redo: list[str]
) -> None:
    """Show what will be different about a run, and make it so.

    The overrides it was started with go on holding for its own file, and not for a new one.
    """
    from jobs.cluster import Cluster
    from jobs.reading.pipeline_file import overlaid, pipeline_in
    from jobs.scheduling.mend import mend, mending

    info = run.info()
    overrides = [*([] if file else info.get("overrides", [])), *overrides]
    path = file or run.given
    document = overlaid(path, overrides)
    pipeline = pipeline_in(document, path, Path(info["cwd"]))
    plan = mending(run, only(pipeline, info.get("only")), redo)
    print("\n".join(plan.lines) or "no setting differs", flush=True)
    preflight(pipeline, Cluster.model_validate(info["cluster"]))
    mend(run, backend, plan, overrides=overrides, description=pipeline.description)
    run.write_given(document.text)
