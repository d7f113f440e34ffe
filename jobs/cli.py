"""The command line: one short function per command.

Exit codes: 0 fine, 1 the cluster refused or a step failed, 2 the user can mend it. A user's mistake
never shows a traceback, a bug always does. Each command imports what it needs and no more.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.arguments import parser
from jobs.errors import ClusterError, UserError, nearest

if TYPE_CHECKING:
    from jobs.backends import Backend
    from jobs.clusters import Cluster
    from jobs.plan import Submit
    from jobs.spec import Pipeline
    from jobs.store import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = parser().parse_args(arguments)
    try:
        return int(_COMMANDS[given.command](given))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `launch.py logs ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped looking; the run goes on: launch.py status", file=sys.stderr)
        return 130


def _read(given: argparse.Namespace) -> "tuple[Pipeline, str]":
    """The pipeline of a command line, and the text that made it."""
    from jobs.reading import read_pipeline

    pipeline = read_pipeline(given.file, given.set)
    header = "".join(f"# --set {override}\n" for override in given.set)
    return pipeline, header + given.file.read_text()


def _run(given: argparse.Namespace) -> int:
    from jobs.plan import restrict

    pipeline, text = _read(given)
    if given.only:
        known = {step.name: step.needs for step in pipeline.steps}
        _known_steps(given.only, known)
        wanted = restrict(known, given.only)
        steps = tuple(step for step in pipeline.steps if step.name in wanted)
        pipeline = pipeline.model_copy(update={"steps": steps})
    if given.dry_run:
        return _dry_run(pipeline, _cluster(given))
    return _launch(pipeline, text, _cluster(given), wait=given.wait)[1]


def _known_steps(names: Sequence[str], known: Sequence[str] | dict[str, tuple[str, ...]]) -> None:
    unknown = [f"--only {name}: {nearest(name, known)}" for name in names if name not in known]
    if unknown:
        raise UserError("\n".join(unknown))


def _cluster(given: argparse.Namespace) -> "Cluster":
    from jobs.clusters import load_cluster

    return load_cluster(given.cluster)


def _preflight(pipeline: "Pipeline", cluster: "Cluster") -> None:
    """ClusterError with everything the cluster would refuse, before anything exists."""
    from jobs.preflight import problems
    from jobs.store import RunStore

    found = problems(pipeline, cluster, RunStore().root)
    if found:
        raise ClusterError("\n".join(found))


def _dry_run(pipeline: "Pipeline", cluster: "Cluster") -> int:
    from jobs.plan import State, plan

    needs = {step.name: step.needs for step in pipeline.steps}
    print(f"{pipeline.name} on {cluster.name}: nothing is submitted")
    for submit in plan(needs, {name: State.NEW for name in needs}):
        step = pipeline.step(submit.step)
        wants = step.resources.model_dump(mode="json")
        amounts = " ".join(f"{name}={value}" for name, value in wants.items())
        print(f"  {step.name} ({step.kind}) {amounts}{_behind(submit)}")
    return 0


def _behind(submit: "Submit") -> str:
    return f" after {', '.join(submit.after)}" if submit.after else ""


def _launch(
    pipeline: "Pipeline", text: str, cluster: "Cluster", *, wait: bool
) -> "tuple[Run, int]":
    """Submit a new run; the run and the exit code."""
    from jobs.store import RunStore
    from jobs.submit import create, proceed

    if cluster.backend == "slurm":
        from jobs.backends.slurm import load_early

        load_early()
    _preflight(pipeline, cluster)
    store = RunStore()
    run = create(store, pipeline, cluster, text, store.new_name(pipeline.name))
    print(run.path)
    backend = _backend_of(run)
    with run.lock():
        todo = proceed(run, backend)
    return run, _report(run, backend, todo, wait)


def _report(run: "Run", backend: "Backend", todo: "Sequence[Submit]", wait: bool) -> int:
    for submit in todo:
        latest = run.step(submit.step).latest()
        print(f"  {submit.step}: job {latest.job.split('.')[0] if latest else ''}{_behind(submit)}")
    if not todo:
        print("nothing to submit: every step has succeeded or is under way")
    sys.stdout.flush()
    if not wait:
        print(f"look: launch.py status {run.name}\n      launch.py logs {run.name}/STEP -f")
        return 0
    from jobs.show import exit_code, watch

    return exit_code(watch(run, backend))


def _check(given: argparse.Namespace) -> int:
    pipeline, _ = _read(given)
    if given.cluster:
        _preflight(pipeline, _cluster(given))
    print(f"{given.file}: {len(pipeline.steps)} steps, no mistakes")
    return 0


def _kinds(given: argparse.Namespace) -> int:
    from jobs import kinds
    from jobs.schema import describe, summary

    if not given.name:
        for name in kinds.NAMES:
            print(f"{name:<10} {summary(kinds.load(name))}")
        print("\nlaunch.py kinds NAME: every setting, with default, unit and meaning")
        return 0
    if given.name not in kinds.NAMES:
        raise UserError(f"no kind {given.name!r}: {nearest(given.name, kinds.NAMES)}")
    from jobs.show import print_kind

    print_kind(describe(given.name, given.preset))
    return 0


def _schema(given: argparse.Namespace) -> int:
    from jobs.schema import json_schema
    from jobs.show import print_json

    print_json(json_schema())
    return 0


def _open(text: str | None) -> "tuple[Run, Backend]":
    from jobs.store import RunStore

    run = RunStore().find(text)
    return run, _backend_of(run)


def _backend_of(run: "Run") -> "Backend":
    """The backend of the cluster that the run was submitted to."""
    cluster = run.info()["cluster"]
    if cluster["backend"] == "slurm":
        from jobs.backends.slurm import SlurmBackend

        return SlurmBackend(cluster)
    from jobs.backends.local import LocalBackend

    return LocalBackend()


def _status(given: argparse.Namespace) -> int:
    from jobs import show

    run, backend = _open(given.run)
    if given.watch:
        return show.exit_code(show.watch(run, backend))
    status = show.describe(run, backend)
    if given.json:
        show.print_json(status)
    else:
        show.print_status(status)
    return show.exit_code(status)


def _logs(given: argparse.Namespace) -> int:
    from jobs import show
    from jobs.states import view
    from jobs.store import RunStore

    run, step = RunStore().find_step(given.step)
    if step is None:
        names = ", ".join(f"{run.name}/{step['name']}" for step in run.steps())
        raise UserError(f"name a step: {names}")
    backend = _backend_of(run)
    show.logs(
        step,
        lambda: view(run, backend).observed[step.name],
        rank=given.rank,
        lines=given.lines,
        pattern=given.grep,
        follow=given.follow,
    )
    return 0


def _cancel(given: argparse.Namespace) -> int:
    from jobs.store import RunStore
    from jobs.submit import cancel

    run, step = RunStore().find_step(given.run)
    backend = _backend_of(run)
    with run.lock():
        names = cancel(run, backend, [step.name] if step else None)
    print(f"cancelled: {', '.join(names)}" if names else "nothing to cancel: no step is active")
    return 0


def _resume(given: argparse.Namespace) -> int:
    from jobs.snapshot import copy_code
    from jobs.submit import proceed

    run, backend = _open(given.run)
    with run.lock():
        if given.fresh_code:
            copy_code(run.next_code())
        todo = proceed(run, backend)
    return _report(run, backend, todo, given.wait)


def _render(given: argparse.Namespace) -> int:
    from jobs.render import render

    pipeline, text = _read(given)
    run = render(pipeline, _cluster(given), text, given.out)
    print(f"{run.path / 'submit_all.sh'} submits {len(pipeline.steps)} steps")
    return 0


def _infer(given: argparse.Namespace) -> int:
    return _on_checkpoint(given, "evaluate", num_samples=given.num_samples)


def _diagnose(given: argparse.Namespace) -> int:
    return _on_checkpoint(given, "diagnose", utterances=given.utterances, limit=given.limit)


def _on_checkpoint(given: argparse.Namespace, kind: str, **settings: object) -> int:
    from jobs.infer import one_step
    from jobs.show import print_log

    pipeline = one_step(
        given.command,
        kind,
        checkpoint=given.checkpoint_dir,
        subset=given.test_subset,
        manifest=given.manifest,
        audio=given.audio,
        **settings,
    )
    run, code = _launch(pipeline, f"# {pipeline.description}\n", _cluster(given), wait=True)
    print_log(run.step(given.command))
    return code


_COMMANDS = {
    "run": _run,
    "check": _check,
    "kinds": _kinds,
    "schema": _schema,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "render": _render,
    "infer": _infer,
    "diagnose": _diagnose,
}
