"""Make jobs stop, and know that they have stopped.

That a job shall end is on disk before the cluster is asked to end it, and that it has ended only
when the cluster says so: until then it may write, and is never forgotten.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from jobs.backends.base import Backend
from jobs.errors import ClusterError
from jobs.scheduling.observe import View
from jobs.scheduling.plan import with_all_behind
from jobs.scheduling.recover import look_closely, note_end
from jobs.step_folder import Submission
from jobs.store import Run

# seconds between looks at jobs that were asked to end: waiting ones end at once, running ones save
_PAUSES = (0.05, 0.2, 0.5, 1.0, 1.5)


class Cancelled(NamedTuple):
    """What came of asking jobs to end: step names, in the order of the run."""

    ended: list[str]  # by us: neither with success nor with a failure of their own
    ending: list[str]  # still in the queue: saving, or not asked successfully
    trouble: str = ""  # what the cluster said against it
    unsubmitted: tuple[str, ...] = ()  # were to be submitted by jobs of the run, and will not be


def cancel(run: Run, backend: Backend, names: Sequence[str] | None = None) -> Cancelled:
    """End the jobs of a run, or of some steps and all behind them, and look whether they ended.

    The caller holds the run's lock. ClusterError where nobody knows what there is to end.
    """
    needs = {step["name"]: step["needs"] for step in run.steps()}
    doomed = with_all_behind(needs if names is None else names, needs)
    unsubmitted = _stop_following(run, doomed)
    seen = look_closely(run, backend)
    living = alive(seen, [name for name in doomed if seen.records[name].result is None])
    trouble = end(run, backend, living)
    left = {each.step for each in settle(run, backend, living)}
    gone = {each.step for each in living} - left
    ended = [name for name in doomed if name in gone and not run.step(name).has_ended()]
    return Cancelled(ended, [name for name in doomed if name in left], trouble, unsubmitted)


def _stop_following(run: Run, doomed: Sequence[str]) -> tuple[str, ...]:
    """Take steps from those that jobs of the run submit; which of them were among these."""
    rest = run.following()
    if rest is None:
        return ()
    left = tuple(name for name in rest.steps if name not in doomed)
    run.write_following(rest._replace(steps=left) if left else None)
    return tuple(name for name in rest.steps if name in doomed)


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
            if not note_end(run, each.step, each.submission, states[each.submission.token])
        ]
    return left
