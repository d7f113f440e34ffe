"""Carry out a plan: create the run, submit its steps exactly once, end them, and look.

For each step the intent is on disk before the job can exist, with a token that the job carries.
Whatever happens in between - SIGKILL, a controller that queues the job and answers "Socket timed
out" - the token tells whether the job is there, before anything is submitted a second time.

The other direction is the same: that a job shall end is on disk before the cluster is asked to end
it, and that it has ended only when the cluster says so. A job that may be alive is never forgotten:
what is submitted in its place waits until it has ended (afterany).
"""

import contextlib
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from jobs.backends.base import Backend, JobState, StepJob, SubmitUnclear
from jobs.cluster import Cluster
from jobs.errors import ClusterError, SubmitRefused, UserError
from jobs.pipeline import Pipeline, Resources
from jobs.program import NAME
from jobs.scheduling.observe import Queue, View, view
from jobs.scheduling.plan import ACTIVE, State, Submit, has_ended, plan
from jobs.snapshot import copy_code, provenance
from jobs.store import Run, RunStore, Submission, user

# sbatch calls at once: 50 jobs in 0.2 s instead of 0.5 s, and no load on a controller
_PARALLEL = 4
_LOOKS = 5  # for a job whose submission was unclear, one second apart
# seconds between looks at jobs that were asked to end: waiting ones end at once, running ones save
_PAUSES = (0.05, 0.2, 0.5, 1.0, 1.5)


def create(
    store: RunStore,
    pipeline: Pipeline,
    cluster: Cluster,
    given: str,
    name: str,
    scheduler: Callable[[], str] = str,
    **facts: Any,
) -> Run:
    """A new run with its snapshot and one job.json per step; nothing is submitted yet.

    `scheduler` tells which Slurm, or which machine, the run's jobs will be known to, or why it
    would refuse them (UserError); `facts` are further entries of run.json. UserError where the disk
    does not take it; what was written of a run that does not come to be is removed.
    """
    first = not store.root.exists()
    try:
        run = store.create(name)
        try:
            _fill(run, pipeline, cluster, given, scheduler, facts)
        except BaseException:  # Ctrl-C, too
            shutil.rmtree(run.path, ignore_errors=True)
            if first:
                with contextlib.suppress(OSError):  # another launcher's run is in it
                    store.root.rmdir()
            raise
    except OSError as error:
        raise UserError(
            f"{store.root / name} cannot be created: {error.strerror}: make room there, or name "
            "another folder (TRAINYARD_RUNS, or --out of render)"
        ) from None
    return run


def _fill(
    run: Run,
    pipeline: Pipeline,
    cluster: Cluster,
    given: str,
    scheduler: Callable[[], str],
    facts: Mapping[str, Any],
) -> None:
    """Everything that a run has before its first job; run.json, which makes it one, last."""
    steps = [step.model_dump(mode="json") for step in pipeline.steps]
    with ThreadPoolExecutor(_PARALLEL) as pool:  # they wait for the disk, for git and for Slurm
        home, origin = pool.submit(scheduler), pool.submit(provenance, run.dirty)
        written = [pool.submit(run.step(step["name"]).write_job, step) for step in steps]
        written.append(pool.submit(run.write_given, given))
        copy_code(run.next_code())
        for future in written:
            future.result()
    run.write_info(
        {
            "name": run.name,
            "pipeline": pipeline.name,
            "description": pipeline.description,
            "cluster": cluster.model_dump(mode="json"),
            "scheduler": home.result(),
            "created": time.time(),
            "user": user(),
            "host": socket.gethostname(),
            "cwd": str(Path.cwd()),
            **origin.result(),
            **facts,
            "steps": steps,
        }
    )


def submit_pending(run: Run, backend: Backend, only: Sequence[str] | None = None) -> list[Submit]:
    """Submit whatever of the run is not done and not under way; what was submitted.

    The caller holds the run's lock. ClusterError where the cluster refuses or does not answer.
    """
    _expect_launch_folder(run)
    seen = look_closely(run, backend)
    needs = {step["name"]: tuple(step["needs"]) for step in run.steps()}
    wanted = {name: needs[name] for name in needs if only is None or name in only}
    todo = plan(wanted, {name: _for_plan(seen, name) for name in needs})
    dying = alive(seen, [submit.step for submit in todo])
    if trouble := end(run, backend, dying):
        raise ClusterError(f"{trouble}; nothing is submitted beside jobs that may be alive")
    behind = {
        submit.step: [job for name, _, job in dying if name == submit.step] for submit in todo
    }
    _carry_out(run, backend, todo, behind)
    return todo


def _expect_launch_folder(run: Run) -> None:
    """UserError where the folder that the steps run in is gone."""
    folder = Path(run.info()["cwd"])
    if not folder.is_dir():
        raise UserError(
            f"{run.name} was started in {folder}, where its steps run, and which is not there: if "
            f"it was moved, leave a link behind: ln -s NEW {folder}"
        )


def look_closely(run: Run, backend: Backend) -> View:
    """Where the run stands, with the jobs whose submission was never answered taken over.

    The caller holds the run's lock. Nothing is submitted or ended while the cluster does not answer
    (ClusterError).
    """
    for step in run.steps():
        latest = run.step(step["name"]).latest()
        if latest is None or latest.job or latest.refused or latest.ended:
            continue
        if job := backend.find(step_job(run, step, latest.token)):
            run.step(step["name"]).add_submission(latest.token, job=job)
    seen = view(run, Queue(backend), thorough=True)
    if seen.trouble:
        raise ClusterError(seen.trouble)
    for name, record in seen.records.items():
        for each in record.tries:
            _note_end(run, name, each, seen.queue.get(each.token))
    return seen


def _note_end(run: Run, name: str, submission: Submission, queue: JobState | None) -> bool:
    """Write down that a job has ended which was asked to; whether that is so."""
    asked = submission.cancel_requested
    ended = queue is not None and asked > 0 and has_ended(queue, time.time() - asked)
    if ended:
        run.step(name).add_submission(submission.token, ended=True)
    return ended


def _for_plan(seen: View, name: str) -> State:
    """A step whose job was asked to end is to be submitted anew, behind that job."""
    state, latest = seen.observed[name].state, seen.records[name].latest
    asked = state in ACTIVE and latest is not None and latest.cancel_requested
    return State.CANCELLED if asked else state


class Living(NamedTuple):
    """A job of a step that is in the queue, runs, or still ends."""

    step: str
    submission: Submission
    job: str  # its id


def alive(seen: View, names: Sequence[str]) -> list[Living]:
    """The living jobs of some steps, those of later steps first."""
    return [
        Living(name, each, state.job)
        for name in reversed(names)
        for each in seen.records[name].tries
        if (state := seen.queue.get(each.token)) and state.alive
    ]


def end(run: Run, backend: Backend, living: Sequence[Living]) -> str:
    """Ask for the end of jobs, on record before the cluster hears of it; what it said against it.

    They may go on to save. Whether they have ended is another question: see `settle`.
    """
    for each in living:
        run.step(each.step).add_submission(each.submission.token, cancel_requested=True)
    try:
        backend.cancel([each.job for each in living])
    except ClusterError as error:
        return str(error)
    return ""


def _carry_out(
    run: Run, backend: Backend, todo: Sequence[Submit], behind: Mapping[str, Sequence[str]]
) -> None:
    """Submit in waves: a wave needs only jobs that have their ids.

    After the first refusal, or Ctrl-C, nothing more is sent to the cluster: what is queued stays,
    and ClusterError says what that is.
    """
    steps = {step["name"]: step for step in run.steps()}
    left, stop = list(todo), threading.Event()

    def submit(one: Submit) -> None:
        if not stop.is_set():
            with _setting(stop):
                _submit(run, backend, steps[one.step], one.after, behind[one.step])

    with ThreadPoolExecutor(_PARALLEL) as pool, _setting(stop):
        while left:
            waiting = {each.step for each in left}
            wave = [each for each in left if not waiting.intersection(each.after)]
            submitted = {each.step: pool.submit(submit, each) for each in wave}
            wait(submitted.values())
            _report_refusal(run, todo, submitted)
            left = [each for each in left if each not in wave]


@contextlib.contextmanager
def _setting(stop: threading.Event) -> Iterator[None]:
    """Set the event when anything is raised inside."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _report_refusal(
    run: Run, todo: Sequence[Submit], submitted: Mapping[str, "Future[None]"]
) -> None:
    """ClusterError where the cluster took some steps and not others: which, why, and what next."""
    errors = {name: error for name, future in submitted.items() if (error := future.exception())}
    for error in errors.values():
        if not isinstance(error, SubmitRefused):
            raise error
    if not errors:
        return
    name, error = next(iter(errors.items()))
    tries = {submit.step: run.step(submit.step).latest() for submit in todo}
    queued = [step for step, latest in tries.items() if latest and latest.job]
    waiting = [submit.step for submit in todo if submit.step not in queued]
    raise ClusterError(
        f"{name}: Slurm refused it: {error}\n"
        f"queued: {', '.join(queued) or 'nothing'}; not submitted: {', '.join(waiting)}. "
        "Where the reason is a limit of how many jobs you may have, what is queued goes on; "
        f"for the rest: {NAME} resume {run.name}"
    )


def _submit(
    run: Run,
    backend: Backend,
    step: Mapping[str, Any],
    after: Sequence[str],
    behind: Sequence[str],
) -> None:
    folder = run.step(step["name"])
    folder.finish_setting_aside()
    run_part = "".join(filter(str.isalnum, run.name[-6:]))  # a rendered run has a name of any kind
    token = f"{step['name']}.{run_part}{secrets.token_hex(2)}"
    ids = [latest.job for name in after if (latest := run.step(name).latest())]
    folder.add_submission(token)
    job = step_job(run, step, token)
    try:
        found = backend.submit(job, ids, behind)
    except SubmitRefused as refusal:
        folder.add_submission(token, refused=str(refusal))
        raise
    except SubmitUnclear as unclear:
        found = _look(backend, job, unclear)
    folder.add_submission(token, job=found)


def _look(backend: Backend, job: StepJob, unclear: SubmitUnclear) -> str:
    for _ in range(_LOOKS):
        if found := backend.find(job):
            return found
        time.sleep(1)
    raise ClusterError(
        f"{job.step}: {unclear}; no job named {job.token} is in the queue. When the cluster "
        f"answers again: {NAME} resume {job.directory.parent.parent.name}"
    ) from None


def step_job(run: Run, step: Mapping[str, Any], token: str) -> StepJob:
    """A step of a run, ready to be submitted under a token."""
    folder = run.step(step["name"])
    return StepJob(
        step=step["name"],
        token=token,
        directory=folder.path,
        logs=folder.logs,
        code=run.codes()[-1],
        cwd=Path(run.info()["cwd"]),
        resources=Resources.model_validate(step["resources"]),
    )


class Cancelled(NamedTuple):
    """What came of asking jobs to end: step names, in the order of the run."""

    ended: list[str]  # by us: neither with success nor with a failure of their own
    ending: list[str]  # still in the queue: saving, or not asked successfully
    trouble: str = ""  # what the cluster said against it


def cancel(run: Run, backend: Backend, names: Sequence[str] | None = None) -> Cancelled:
    """End the jobs of a run, or of some steps and all behind them, and look whether they ended.

    The caller holds the run's lock. ClusterError where nobody knows what there is to end.
    """
    seen = look_closely(run, backend)
    doomed: list[str] = []
    for step in run.steps():
        if names is None or step["name"] in names or set(step["needs"]) & set(doomed):
            doomed.append(step["name"])
    living = alive(seen, [name for name in doomed if seen.records[name].result is None])
    trouble = end(run, backend, living)
    left = {each.step for each in settle(run, backend, living)}
    gone = {each.step for each in living} - left
    ended = [name for name in doomed if name in gone and not run.step(name).has_ended()]
    return Cancelled(ended, [name for name in doomed if name in left], trouble)


def settle(run: Run, backend: Backend, living: Sequence[Living]) -> list[Living]:
    """Look for some seconds whether jobs have ended, and write down which; those that have not."""
    now = time.time()
    left = [
        each._replace(submission=each.submission._replace(cancel_requested=now)) for each in living
    ]
    for pause in _PAUSES:
        if not left:
            break
        time.sleep(pause)
        try:
            states = backend.states({each.submission.token: each.job for each in left})
        except ClusterError:  # nobody knows yet: they stay on the list
            continue
        left = [
            each
            for each in left
            if not _note_end(run, each.step, each.submission, states[each.submission.token])
        ]
    return left
