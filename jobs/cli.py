"""The command line: one short function per command.

Exit codes: 0 fine, 1 the cluster refused or a step failed, 2 the user can mend it. A user's mistake
never shows a traceback, a bug always does. Each command imports what it needs and no more.
"""

import argparse
import contextlib
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jobs.arguments import parser
from jobs.errors import ClusterError, UserError, nearest
from jobs.program import NAME

if TYPE_CHECKING:
    from jobs.backends.base import Backend
    from jobs.cluster import Cluster
    from jobs.healing.stays import Accounts
    from jobs.pipeline import Pipeline
    from jobs.scheduling.cancel import Cancelled
    from jobs.scheduling.plan import Submit
    from jobs.store import Run, RunStore


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    gc.set_threshold(100_000)  # what imports make stays: looking for garbage in it takes 8 ms
    for stream in (sys.stdout, sys.stderr):  # a log may hold what a terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        given = parser().parse_args(arguments)
        code = int(_COMMANDS[given.command](given))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `launch.py logs ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130


def leave(code: int) -> NoReturn:
    """End the process, for a command that is done: Python's own way out frees, object by object,
    what the imports have made, and takes 60 ms with pydantic and submitit, 10 ms without.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def _when_stopped(say: str) -> Iterator[None]:
    """What Ctrl-C means in here."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or say) from None


def _watching(run: "Run") -> contextlib.AbstractContextManager[None]:
    return _when_stopped(f"stopped looking; the run goes on: {NAME} status {run.name}")


def _submitting(run: "Run") -> contextlib.AbstractContextManager[None]:
    return _when_stopped(
        f"stopped while submitting; what is in the queue stays there, and for the rest: "
        f"{NAME} resume {run.name}"
    )


def _read(given: argparse.Namespace) -> "tuple[Pipeline, str]":
    """The pipeline of a command line, and the text of its file."""
    from jobs.reading.pipeline_file import read_pipeline
    from jobs.reading.shipped import find_pipeline

    file = find_pipeline(given.file)
    pipeline = _only(read_pipeline(file, given.set), getattr(given, "only", None))
    return pipeline, file.read_text()


def _only(pipeline: "Pipeline", names: Sequence[str] | None) -> "Pipeline":
    """Some steps of a pipeline, with all that they need."""
    from jobs.scheduling.plan import restrict

    if not names:
        return pipeline
    known = {step.name: step.needs for step in pipeline.steps}
    _known_steps(names, known)
    wanted = restrict(known, names)
    steps = tuple(step for step in pipeline.steps if step.name in wanted)
    return pipeline.model_copy(update={"steps": steps})


def _run(given: argparse.Namespace) -> int:
    (pipeline, text), cluster = _read(given), _cluster(given)
    if given.dry_run:
        return _dry_run(pipeline, cluster)
    facts = {"overrides": given.set, "only": given.only or []}
    return _launch(pipeline, text, cluster, wait=given.wait, **facts)[1]


def _known_steps(names: Sequence[str], known: Sequence[str] | dict[str, tuple[str, ...]]) -> None:
    unknown = [f"--only {name}: {nearest(name, known)}" for name in names if name not in known]
    if unknown:
        raise UserError("\n".join(unknown))


def _cluster(given: argparse.Namespace) -> "Cluster":
    from jobs.cluster import load_cluster

    return load_cluster(given.cluster)


def _preflight(pipeline: "Pipeline", cluster: "Cluster") -> None:
    """ClusterError with everything the cluster would refuse, before anything is submitted."""
    from jobs.backends.slurm.preflight import problems
    from jobs.store import RunStore

    found = problems(pipeline, cluster, RunStore().root)
    if found:
        raise ClusterError("\n".join(found))


def _dry_run(pipeline: "Pipeline", cluster: "Cluster") -> int:
    from jobs.scheduling.plan import State, plan

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
    pipeline: "Pipeline", text: str, cluster: "Cluster", *, wait: bool, **facts: Any
) -> "tuple[Run, int]":
    """Submit a new run; the run and the exit code. `facts` go into run.json."""
    from jobs.scheduling.submit import submit_patiently
    from jobs.store import RunStore

    store = RunStore()
    run = _create(pipeline, text, cluster, store, store.new_name(pipeline.name), **facts)
    print(run.path, flush=True)
    backend = _backend_of(run)
    with _submitting(run):
        todo = submit_patiently(run, backend)
    return run, _report(run, backend, todo, wait)


def _create(
    pipeline: "Pipeline", text: str, cluster: "Cluster", store: "RunStore", name: str, **facts: Any
) -> "Run":
    """A new run, nothing of which is submitted yet, on a cluster that would take it."""
    from concurrent.futures import ThreadPoolExecutor

    from jobs.scheduling.create import create

    if cluster.backend == "slurm":
        from jobs.backends.slurm.backend import load_early

        load_early()
    backend = _backend(cluster.model_dump(mode="json"))
    with ThreadPoolExecutor(1) as pool:  # the answers come while the run's files are written
        checked = pool.submit(_ask_first, pipeline, cluster, backend)
        return create(store, pipeline, cluster, text, name, checked.result, **facts)


def _rehearse(given: argparse.Namespace) -> int:
    from jobs import rehearse
    from jobs.healing.rehearsal import planned, target
    from jobs.printing import print_json
    from jobs.scheduling.submit import submit_pending
    from jobs.store import RunStore

    (pipeline, text), cluster = _read(given), _cluster(given)
    store = RunStore()
    store = RunStore(store.root / store.new_name("rehearsal"))
    store.root.mkdir(mode=0o700, parents=True)

    def launch(
        small: "Pipeline", name: str, prepare: "Callable[[Run], None]"
    ) -> "tuple[Run, Backend]":
        run = _create(small, text, cluster, store, name, overrides=given.set)
        prepare(run)
        backend = _backend_of(run)
        with run.lock():
            submit_pending(run, backend)
        return run, backend

    faults = planned(given.faults, target(pipeline), cluster.backend == "slurm")
    rehearse.tell(f"rehearsal of {pipeline.name} on {cluster.name}: {store.root}")
    stopped = f"stopped; what is in the queue stays there: {NAME} cancel {store.root}/RUN"
    with _when_stopped(stopped):
        rows = rehearse.rehearse(pipeline, faults, store.root, launch)
    if given.json:
        print_json([row._asdict() for row in rows])
    else:
        print(rehearse.table(rows))
    return int(not all(row.as_expected for row in rows))


def _ask_first(pipeline: "Pipeline", cluster: "Cluster", backend: "Backend") -> str:
    """Which scheduler answers, as soon as it does, and what it would refuse (ClusterError)."""
    from jobs.scheduling.patience import patiently

    home = patiently(backend.identity)
    _preflight(pipeline, cluster)
    return home


def _report(run: "Run", backend: "Backend", todo: "Sequence[Submit]", wait: bool) -> int:
    from jobs.healing.nodes import explain, nodes_to_exclude

    for submit in todo:
        latest = run.step(submit.step).latest()
        print(f"  {submit.step}: job {latest.job.split('.')[0] if latest else ''}{_behind(submit)}")
    if rest := run.following():
        print(
            f"  {', '.join(rest.steps)}: Slurm takes no more jobs of yours for now; they follow by "
            "themselves as jobs of this run end"
        )
    elif not todo:
        print("nothing to submit: every step has succeeded or is under way")
    if excluded := nodes_to_exclude(run.path.parent, run.info().get("scheduler", "")):
        print(f"  {explain(excluded)}")
    sys.stdout.flush()
    if not wait:
        print(f"look: {NAME} status {run.name}\n      {NAME} logs {run.name}/STEP -f")
        return 0
    from jobs.scheduling.observe import Queue
    from jobs.status import exit_code, watch

    with _watching(run):
        return exit_code(watch(run, Queue(backend, backend.every)))


def _check(given: argparse.Namespace) -> int:
    pipeline, _ = _read(given)
    if given.cluster:
        _preflight(pipeline, _cluster(given))
    _tell_recipes(pipeline, given)
    print(f"{given.file}: {len(pipeline.steps)} steps, no mistakes")
    return 0


def _tell_recipes(pipeline: "Pipeline", given: argparse.Namespace) -> None:
    """What the file changes of its presets; with --effective the whole recipe of each training."""
    from jobs.printing import print_recipe
    from jobs.reading.effective import facts, overridden, trains, values
    from jobs.reading.gates import differences
    from jobs.reading.pipeline_file import overlaid
    from jobs.reading.shipped import find_pipeline

    document = overlaid(find_pipeline(given.file), given.set)
    for line in [*overridden(pipeline, document), *differences(pipeline, document)]:
        print(line, file=sys.stderr)
    for step in filter(trains, pipeline.steps if given.effective else ()):
        print_recipe(f"{step.name} ({step.kind})", values(step, document), facts(step))


def _kinds(given: argparse.Namespace) -> int:
    from jobs import kinds
    from jobs.healing.remedies import defaults
    from jobs.reading.json_schema import describe, summary

    if not given.name:
        for name in kinds.NAMES:
            print(f"{name:<10} {summary(kinds.load(name))}")
        print(f"\n{NAME} kinds NAME: every setting, with default, unit and meaning")
        return 0
    if given.name not in kinds.NAMES:
        raise UserError(f"no kind {given.name!r}: {nearest(given.name, kinds.NAMES)}")
    from jobs.printing import print_kind

    about = describe(given.name, given.preset)
    print_kind({**about, "remedies": defaults([row["name"] for row in about["settings"]])})
    return 0


def _schema(given: argparse.Namespace) -> int:
    from jobs.printing import print_json
    from jobs.reading.json_schema import json_schema

    print_json(json_schema())
    return 0


def _open(text: str | None) -> "tuple[Run, Backend]":
    from jobs.store import RunStore

    run = RunStore().find(text)
    return run, _backend_of(run)


def _backend_of(run: "Run") -> "Backend":
    """The backend of the cluster that the run was submitted to; anywhere else it refuses."""
    info = run.info()
    return _backend(info["cluster"], info.get("scheduler", ""), info["user"])


def _backend(cluster: "Mapping[str, Any]", scheduler: str = "", user: str = "") -> "Backend":
    if cluster["backend"] == "slurm":
        from jobs.backends.slurm.backend import SlurmBackend

        return SlurmBackend(cluster, scheduler, user)
    from jobs.backends.local import LocalBackend

    return LocalBackend(scheduler)


def _status(given: argparse.Namespace) -> int:
    from jobs import status
    from jobs.printing import print_json
    from jobs.scheduling.observe import Queue

    run, backend = _open(given.run)
    if given.watch:
        with _watching(run):
            return status.exit_code(status.watch(run, Queue(backend, backend.every)))
    found = status.describe(run, Queue(backend))
    if given.json:
        print_json(found)
    else:
        status.print_status(found)
    return status.exit_code(found)


def _ledger(given: argparse.Namespace) -> int:
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
        states = _backend_of(run).states(jobs)
    except ClusterError as error:  # another machine than the run's
        return Accounts(trouble=str(error))
    return Accounts(living={seen.job for seen in states.values() if seen.alive})


def _logs(given: argparse.Namespace) -> int:
    from jobs.logs import logs
    from jobs.scheduling.observe import Queue
    from jobs.store import RunStore

    run, step = RunStore().find_step(given.step)
    if step is None:
        names = ", ".join(f"{run.name}/{step['name']}" for step in run.steps())
        raise UserError(f"name a step: {names}")
    backend = _backend_of(run)
    with _watching(run):
        return logs(
            run,
            step,
            Queue(backend, backend.every),
            rank=given.rank,
            lines=given.lines,
            pattern=given.grep,
            follow=given.follow,
        )


def _cancel(given: argparse.Namespace) -> int:
    from jobs.scheduling.cancel import cancel
    from jobs.store import RunStore

    store = RunStore()
    if not given.run:
        name = store.find(None).name
        raise UserError(f"say what to cancel; the newest run is: {NAME} cancel {name}")
    run, step = store.find_step(given.run)
    backend = _backend_of(run)
    asked = f"stopped; what was asked to end may still be there: {NAME} status {run.name}"
    with _when_stopped(asked), run.lock():
        done = cancel(run, backend, [step.name] if step else None)
    _tell(done, run, given.run)
    return 0


def _tell(done: "Cancelled", run: "Run", asked: str) -> None:
    """Say what came of asking for the end; ClusterError where that is not known."""
    if done.ended:
        print(f"cancelled: {', '.join(done.ended)}")
    if done.ending:
        print(f"asked to end, and still there: {', '.join(done.ending)}")
        print(f"look: {NAME} status {run.name}")
    if done.trouble and done.ending:
        raise ClusterError(
            f"{done.trouble}: it is not known whether these jobs will end; to ask again: "
            f"{NAME} cancel {asked}"
        )
    if done.unsubmitted:
        print(f"not submitted any more: {', '.join(done.unsubmitted)}")
    if not done.ended and not done.ending and not done.unsubmitted:
        print("nothing to cancel: no job of it is in the queue")


def _resume(given: argparse.Namespace) -> int:
    from jobs.reading.shipped import find_pipeline
    from jobs.scheduling.submit import submit_patiently

    run, backend = _open(given.run)
    file = find_pipeline(given.file).absolute() if given.file else None
    with _submitting(run):
        _prepare(run, backend, given, file)
        todo = submit_patiently(run, backend)
    return _report(run, backend, todo, given.wait)


def _prepare(run: "Run", backend: "Backend", given: argparse.Namespace, file: Path | None) -> None:
    """Make a run ready to go on with what is different about it."""
    from jobs.scheduling.patience import patiently
    from jobs.snapshot import copy_code

    patiently(backend.expect_home)  # with no job left to ask about, nothing else would tell
    with run.lock():
        if file or given.set or given.redo:
            with _when_stopped("stopped; nothing was submitted: the same command does the rest"):
                _mend(run, backend, file, given.set, given.redo)
        if given.fresh_code:
            copy_code(run.next_code())


def _follow(given: argparse.Namespace) -> int:
    from jobs.scheduling.follow import Ending, follow
    from jobs.step_folder import StepDir
    from jobs.store import Run

    step = StepDir(given.step.absolute())
    run = Run(step.path.parents[1])
    follow(run, _backend_of(run), Ending(step, os.environ.get("SLURM_JOB_ID", "")))
    return 0


def _relay(given: argparse.Namespace) -> int:
    from jobs.fence import Attempt
    from jobs.scheduling.relay import relay
    from jobs.store import Run

    run = Run(given.step.absolute().parents[1])
    name, present = given.step.name, Attempt.present()
    print(relay(run, _backend_of(run), name, present, given.out_of_memory))
    return 0


def _mend(
    run: "Run", backend: "Backend", file: Path | None, overrides: list[str], redo: list[str]
) -> None:
    """Show what will be different about a run, and make it so.

    The overrides it was started with go on holding for its own file, and not for a new one.
    """
    from jobs.cluster import Cluster
    from jobs.reading.pipeline_file import read_pipeline
    from jobs.scheduling.mend import mend, mending

    info = run.info()
    overrides = [*([] if file else info.get("overrides", [])), *overrides]
    pipeline = read_pipeline(file or run.given, overrides, Path(info["cwd"]))
    plan = mending(run, _only(pipeline, info.get("only")), redo)
    print("\n".join(plan.lines) or "no setting differs", flush=True)
    _preflight(pipeline, Cluster.model_validate(info["cluster"]))
    text = file.read_text() if file else run.given.read_text()
    mend(run, backend, plan, overrides=overrides, description=pipeline.description)
    run.write_given(text)


def _render(given: argparse.Namespace) -> int:
    from jobs.render import render

    pipeline, text = _read(given)
    run = render(pipeline, _cluster(given), text, given.out, overrides=given.set)
    print(f"{run.path / 'submit_all.sh'} submits {len(pipeline.steps)} steps")
    return 0


def _infer(given: argparse.Namespace) -> int:
    return _on_checkpoint(given, "evaluate", num_samples=given.num_samples)


def _diagnose(given: argparse.Namespace) -> int:
    return _on_checkpoint(given, "diagnose", utterances=given.utterances, limit=given.limit)


def _on_checkpoint(given: argparse.Namespace, kind: str, **settings: object) -> int:
    import json

    from jobs.logs import print_log
    from jobs.one_step import one_step
    from jobs.reading.pipeline_file import read_step

    name, cluster = given.command, _cluster(given)
    file = one_step(
        name,
        kind,
        cluster,
        checkpoint=given.checkpoint_dir,
        subset=given.test_subset,
        manifest=given.manifest,
        audio=given.audio,
        **settings,
    )
    overrides = [f"{name}.{override}" for override in given.set]
    pipeline = read_step(file, overrides)
    if given.dry_run:
        return _dry_run(pipeline, cluster)
    text, wait = json.dumps(file, indent=1) + "\n", not given.no_wait
    run, code = _launch(pipeline, text, cluster, wait=wait, overrides=overrides)
    if wait:
        print_log(run.step(name))
    return code


_COMMANDS = {
    "run": _run,
    "check": _check,
    "kinds": _kinds,
    "schema": _schema,
    "status": _status,
    "ledger": _ledger,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "follow": _follow,
    "relay": _relay,
    "rehearse": _rehearse,
    "render": _render,
    "infer": _infer,
    "diagnose": _diagnose,
}
