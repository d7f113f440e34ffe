"""Carry out a plan: submit the steps of a run exactly once.

For each step the intent is on disk before the job can exist, with a token that the job carries.
Whatever happens in between - SIGKILL, a controller that queues the job and answers "Socket timed
out" - the token tells whether the job is there, before anything is submitted a second time. What is
submitted in the place of a job that may be alive waits until that has ended (afterany).

What a limit of jobs keeps out of the queue is left to the jobs of the run: see `follow`. That it is
theirs is on disk before the first job can end.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from jobs.backends.base import Backend, StepJob, SubmitUnclear
from jobs.errors import ClusterError, LimitReached, SubmitRefused, Unreachable, UserError
from jobs.program import NAME
from jobs.scheduling import environment
from jobs.scheduling.cancel import alive, end
from jobs.scheduling.observe import View
from jobs.scheduling.patience import patiently
from jobs.scheduling.plan import ACTIVE, State, Submit, plan
from jobs.scheduling.recover import look_closely, step_job
from jobs.step_folder import StepDir
from jobs.store import Following, Run

# sbatch calls at once: 50 jobs in 0.2 s instead of 0.5 s, and no load on a controller
_PARALLEL = 4
_TRIES = 5  # for a job whose submission was unclear, one second apart


def submit_pending(run: Run, backend: Backend) -> list[Submit]:
    """Submit whatever of the run is not done and not under way; what was submitted.

    The caller holds the run's lock. What the cluster's limit of jobs keeps out is left to jobs of
    the run, where there are some; otherwise ClusterError, as where it refuses or does not answer.
    """
    _expect_launch_folder(run)
    before = run.following()
    run.write_following(Following(before.steps if before else (), environment.present()))
    try:
        seen = look_closely(run, backend)
        needs = {step["name"]: tuple(step["needs"]) for step in run.steps()}
        states = {name: state_to_plan(seen, name) for name in needs}
        todo = plan(needs, states)
        submitted, limit = carry_out(run, backend, todo, _end_dying(run, backend, seen, todo))
        others = {*states.values()} & ACTIVE or submitted
        if limit and not others:
            raise limit
    except BaseException:  # Ctrl-C, too
        run.write_following(before)
        raise
    leave_to_jobs(run, [submit.step for submit in todo if submit not in submitted])
    return submitted


def submit_patiently(run: Run, backend: Backend) -> list[Submit]:
    """`submit_pending`, for some minutes until Slurm answers; what was submitted.

    Each try first looks for what an earlier one may have submitted. The lock is free meanwhile.
    """

    def submit() -> None:
        with run.lock():
            submit_pending(run, backend)

    before = _tokens(run)
    patiently(submit)
    new = [name for name, token in _tokens(run).items() if token not in before.values()]
    return [
        Submit(
            step["name"],
            tuple(need for need in step["needs"] if run.step(need).result() is None),
        )
        for step in run.steps()
        if step["name"] in new
    ]


def _tokens(run: Run) -> dict[str, str]:
    """The newest submission of each step that has a job."""
    tries = {name: run.step(name).latest() for name in run.names()}
    return {name: latest.token for name, latest in tries.items() if latest and latest.job}


def leave_to_jobs(run: Run, steps: Sequence[str], **facts: Any) -> None:
    """Write down which steps the jobs of the run are to submit; none: that is over."""
    known = run.following() or Following()
    run.write_following(known._replace(steps=tuple(steps), **facts) if steps else None)


def _end_dying(
    run: Run, backend: Backend, seen: View, todo: Sequence[Submit]
) -> dict[str, list[str]]:
    """By step: the jobs that may be alive in its place; they are asked to end once more."""
    dying = alive(seen, [submit.step for submit in todo])
    if trouble := end(run, backend, dying):
        raise ClusterError(f"{trouble}; nothing is submitted beside jobs that may be alive")
    return {submit.step: [job for name, _, job in dying if name == submit.step] for submit in todo}


def _expect_launch_folder(run: Run) -> None:
    """UserError where the folder that the steps run in is gone."""
    folder = Path(run.info()["cwd"])
    if not folder.is_dir():
        raise UserError(
            f"{run.name} was started in {folder}, where its steps run, and which is not there: if "
            f"it was moved, leave a link behind: ln -s NEW {folder}"
        )


def state_to_plan(seen: View, name: str) -> State:
    """A step whose job was asked to end is to be submitted anew, behind that job."""
    state, latest = seen.observed[name].state, seen.records[name].latest
    asked = state in ACTIVE and latest is not None and latest.cancel_requested
    return State.CANCELLED if asked else state


def carry_out(
    run: Run, backend: Backend, todo: Sequence[Submit], behind: Mapping[str, Sequence[str]]
) -> tuple[list[Submit], ClusterError | None]:
    """Submit in waves: a wave needs only jobs that have their ids.

    What was submitted, and the refusal where the cluster takes no more jobs of this user. After the
    first refusal, or Ctrl-C, nothing more is sent to the cluster: what is queued stays. For any
    other refusal ClusterError, which says what is queued.
    """
    steps = {step["name"]: step for step in run.steps()}
    done: list[Submit] = []
    left, stop = list(todo), threading.Event()

    def submit(one: Submit) -> None:
        if not stop.is_set():
            with _setting(stop):
                _submit(run, backend, steps[one.step], one.after, behind[one.step])
            done.append(one)

    with ThreadPoolExecutor(_PARALLEL) as pool, _setting(stop):
        while left:
            waiting = {each.step for each in left}
            wave = [each for each in left if not waiting.intersection(each.after)]
            futures = {each.step: pool.submit(submit, each) for each in wave}
            wait(futures.values())
            if limit := _refusal(run, todo, futures):
                return [each for each in todo if each in done], limit
            left = [each for each in left if each not in wave]
    return list(todo), None


@contextlib.contextmanager
def _setting(stop: threading.Event) -> Iterator[None]:
    """Set the event when anything is raised inside."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _refusal(
    run: Run, todo: Sequence[Submit], submitted: Mapping[str, "Future[None]"]
) -> ClusterError | None:
    """Where the cluster took some steps and not others: which, why, and what next.

    It is raised where that is not for the number of jobs alone.
    """
    errors = {name: error for name, future in submitted.items() if (error := future.exception())}
    for error in errors.values():
        if not isinstance(error, SubmitRefused):
            raise error
    if not errors:
        return None
    name, error = next(iter(errors.items()))
    tries = {submit.step: run.step(submit.step).latest() for submit in todo}
    queued = [step for step, latest in tries.items() if latest and latest.job]
    waiting = [submit.step for submit in todo if submit.step not in queued]
    refusal = ClusterError(
        f"{name}: Slurm refused it: {error}\n"
        f"queued: {', '.join(queued) or 'nothing'}; not submitted: {', '.join(waiting)}. "
        "Where the reason is a limit of how many jobs you may have, what is queued goes on; "
        f"for the rest: {NAME} resume {run.name}"
    )
    if all(isinstance(error, LimitReached) for error in errors.values()):
        return refusal
    raise refusal


def _submit(
    run: Run,
    backend: Backend,
    step: Mapping[str, Any],
    after: Sequence[str],
    behind: Sequence[str],
) -> None:
    folder = run.step(step["name"])
    folder.finish_setting_aside()
    token = new_token(run, step["name"])
    ids = [latest.job for name in after if (latest := run.step(name).latest())]
    folder.add_submission(token)
    found = queue(backend, folder, step_job(run, step, token), ids, behind)
    folder.add_submission(token, job=found)


def new_token(run: Run, name: str) -> str:
    """A name that no other job has."""
    run_part = "".join(filter(str.isalnum, run.name[-6:]))  # a rendered run has a name of any kind
    return f"{name}.{run_part}{secrets.token_hex(2)}"


def queue(
    backend: Backend, folder: StepDir, job: StepJob, after: Sequence[str], behind: Sequence[str]
) -> str:
    """Bring a job whose token is on record into the queue; its id."""
    try:
        return backend.submit(job, after, behind)
    except SubmitRefused as refusal:
        folder.add_submission(job.token, refused=str(refusal))
        raise
    except SubmitUnclear as unclear:
        return _find_unclear(backend, job, unclear)


def _find_unclear(backend: Backend, job: StepJob, unclear: SubmitUnclear) -> str:
    for _ in range(_TRIES):
        if found := backend.find(job):
            return found
        time.sleep(1)
    raise Unreachable(
        f"{job.step}: {unclear}; no job named {job.token} is in the queue. When the cluster "
        f"answers again: {NAME} resume {job.directory.parent.parent.name}"
    ) from None
