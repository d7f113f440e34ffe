"""The run drives itself: what did not fit into the queue is submitted by the run's own jobs.

Slurm takes only so many jobs of one user at a time. A job that ends calls this (`launch.py follow`,
from its batch script) where the run has such steps, and submits as many of them as fit by now. The
job that ends counts for the limit until it is gone: where another job of the run is left, that one
goes on when it ends. Where none is left, one stays in its place for a while and tries again, for
the place of the others that end at the same moment.
"""

import time
from typing import NamedTuple

from jobs.backends.base import Backend
from jobs.errors import ClusterError, UserError
from jobs.program import NAME
from jobs.scheduling import environment
from jobs.scheduling.observe import View
from jobs.scheduling.patience import patiently
from jobs.scheduling.plan import ACTIVE, State, Submit, plan_rest
from jobs.scheduling.recover import look_closely
from jobs.scheduling.submit import carry_out, leave_to_jobs, state_to_plan
from jobs.step_folder import StepDir
from jobs.store import Following, Run

_LONGEST = 30.0  # seconds that a job stays, in which others may leave the queue
_PAUSE = 2.0  # seconds between two tries
_LOCKED = 120.0  # seconds for which a launcher that holds the lock is waited for
_FRESH = 20.0  # seconds after a keeper's last try for which it counts as being there


class Ending(NamedTuple):
    """The job that ends."""

    step: StepDir
    job: str  # its id


def follow(run: Run, backend: Backend, ending: Ending) -> None:
    """Submit what fits of what is left, and say so in the log; what stops it is an event, too."""
    end = time.monotonic() + _LONGEST
    try:
        while refused := patiently(lambda: _try(run, backend, ending)):
            if time.monotonic() > end:
                raise ClusterError(refused)
            time.sleep(_PAUSE)
    except UserError as error:
        _tell(run, ending, str(error))


def _try(run: Run, backend: Backend, ending: Ending) -> str:
    """Submit what fits; why it is to be tried again, empty where nothing is left for this job."""
    with run.lock(_LOCKED):
        run = Run(run.path)  # `resume` may have changed it meanwhile
        rest = run.following()
        if rest is None or not rest.steps or _is_kept_by_another(rest, ending):
            return ""
        environment.restore(rest.environment)
        seen = look_closely(run, backend)
        states = {name: _state(seen, name) for name in run.names()}
        needs = {step["name"]: tuple(step["needs"]) for step in run.steps()}
        todo = plan_rest(needs, states, rest.steps)
        submitted, refusal = carry_out(run, backend, todo, {each.step: [] for each in todo})
        left = [each.step for each in todo if each not in submitted]
        alone = not submitted and not _others(run, states, ending)
        keeper = ending.job if refusal and alone else ""
        leave_to_jobs(run, left, stopped="", keeper=keeper, kept=time.time())
    _tell_submitted(run, ending, submitted)
    return str(refusal) if keeper else ""


def _is_kept_by_another(rest: Following, ending: Ending) -> bool:
    """Whether another job of the run stays to submit what is left: this one makes room for it."""
    return rest.keeper not in ("", ending.job) and rest.kept > time.time() - _FRESH


def _state(seen: View, name: str) -> State:
    """A submission that was cut short and left no job is none."""
    state, latest = state_to_plan(seen, name), seen.records[name].latest
    cut_short = state is State.LOST and latest is not None and not latest.job
    return State.NEW if cut_short else state


def _others(run: Run, states: dict[str, State], ending: Ending) -> bool:
    """Whether another job of the run is in the queue, and will come by here when it ends."""
    active = [run.step(name).latest() for name, state in states.items() if state in ACTIVE]
    return any(latest and latest.job != ending.job for latest in active)


def _tell_submitted(run: Run, ending: Ending, submitted: list[Submit]) -> None:
    """Say in the log which jobs this one has submitted."""
    for name in [each.step for each in submitted]:
        if latest := run.step(name).latest():
            print(f"{ending.step.name}: {name} follows as job {latest.job}", flush=True)
    if submitted:
        names = [each.step for each in submitted]
        ending.step.add_event("submitted", {"job": ending.job, "steps": names})


def _tell(run: Run, ending: Ending, reason: str) -> None:
    """Say in the log, among the events and to `status` why nothing follows from this job."""
    print(f"{ending.step.name}: what is left of the run does not follow: {reason}", flush=True)
    print(f"where no other job of it is left: {NAME} resume {run.name}", flush=True)
    ending.step.add_event("not_followed", {"job": ending.job, "reason": reason})
    with run.lock(_LOCKED):
        if rest := run.following():
            run.write_following(rest._replace(stopped=reason.splitlines()[0], keeper=""))
