"""The compute node's side: job.json -> the kind's `run` -> result.json, or failure.json.

The job runs `main()` below on the path of a step's folder. A signal only sets a flag: the kind
saves at the next step boundary and raises `Interrupted`. After the time-limit warning (USR2) the
worker then sees to it that the step goes on, in a job behind this one, or in this one once Slurm
has requeued it (`jobs.healing.leaving`); after SIGTERM (preemption, scancel) it just leaves. A
started step reads everything from disk.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

from jobs import gate, kinds
from jobs.errors import Superseded, UserError
from jobs.fence import Attempt, Fence
from jobs.healing import nodes, remedies
from jobs.healing.cause import SECONDARY, cause_of, failure_record, sentence
from jobs.healing.leaving import hand_over, requeue, stuck, was_warned
from jobs.job import SAVED, Job
from jobs.kinds import _external
from jobs.reading.paths import replace, walk
from jobs.reading.references import fill_references
from jobs.step_folder import StepDir
from lact_asr.distributed.place import from_environment
from lact_asr.utils.disturbance import undisturbed
from lact_asr.utils.errors import DataError, Failed, Interrupted

WARNING = signal.SIGUSR2  # sent some time before the limit (submitit's choice)
_LATE = 10.0  # seconds that a result may take from one node to another
_ABSENT = "it has no result.json"
_LET_FIRST = 3.0  # seconds in which the rank that failed first records why
_WITH_TRACEBACK = ("error", "missing_file", "import_error")  # they may be bugs of ours
_PAUSES = (1.0, 30.0)  # seconds between two requests to be requeued: the first, the longest


def work(step: StepDir) -> None:
    """Run a step; what goes wrong is recorded, then ends the process with a bad status.

    Whatever the end, the log's last line says why.
    """
    process = _Process(step)
    try:
        process.run()
    except Superseded as newer:
        print(f"{step.name} {newer}: this job leaves its place", flush=True)
        if process.world_size > 1:
            sys.exit(SAVED)  # others, who looked sooner, wait for this rank, and must end too


class _Process:
    """One process of one step."""

    def __init__(self, step: StepDir) -> None:
        self.step = step
        self.rank, self.world_size, self.local_rank = from_environment(os.environ)
        self.attempt = Attempt.present()
        self.fence = Fence(step, self.attempt)
        self.received: int | None = None

    def run(self) -> None:
        for number in (WARNING, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        try:
            try:
                if was_warned(self.step.events(), self.attempt):
                    self.received = WARNING
                    self._go_on_elsewhere()
                self._work()
            except Interrupted as saved:
                self._leave(saved)
        except Superseded:
            raise
        except Exception as error:
            self._fail(error)

    def _work(self) -> None:
        """From a claim on the step's folder to its result."""
        if self._has_result():
            return
        described = _read_job_file(self.step)
        self.fence.enter(claim=self.rank == 0)
        if self.rank == 0:
            self.step.forget_earlier_failure(job=self.attempt.job, restart=self.attempt.restart)
            if self.attempt.restart:
                nodes.note_earlier(self.step, self.attempt)
        os.environ.setdefault("OMP_NUM_THREADS", str(described["resources"]["cpus"]))
        # threads that spin while they wait cost 4 times the time where cores are shared
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._event(
            "resumed" if self.step.events() else "started",
            host=os.uname().nodename,
            restart=self.attempt.restart,
            python=".".join(map(str, sys.version_info[:3])),  # the node's, not the launcher's
        )
        started = time.time()
        check_needs(self.step, described["needs"])
        result = self._result(described)
        self._join()
        if self.rank == 0:
            seconds = round(time.time() - started, 1)
            self._event("finished", seconds=seconds, **used(), **_torch())
            self.step.write_result({**result, **self._remedies()})

    def _has_result(self) -> bool:
        """Whether the step has succeeded: Slurm has requeued it after it had finished."""
        doubt = unsuccessful(self.step)
        if not doubt:
            print(f"{self.step.name} has its result: nothing is left to do", flush=True)
        elif doubt != _ABSENT:
            print(f"{self.step.name}: {doubt}: that is no success, the step runs", flush=True)
        return not doubt

    def _result(self, described: Mapping[str, Any]) -> dict[str, Any]:
        settings = remedies.in_force(described["settings"], self.step.events())
        given = resolve(self.step, settings)
        if described["kind"] == "command" and given == settings:
            # checked on the login node, by this very code: the 0.1 s of pydantic are saved
            result = _external.run(SimpleNamespace(**given), self._job(described))
        else:
            result = _checked_and_run(described["kind"], given, self._job(described))
        if reason := gate.explain_miss(resolve(self.step, described["gate"]), result):
            raise Failed("gate_missed", reason)
        return result

    def _remedies(self) -> dict[str, Any]:
        """What the result says of settings that are not those of the file; empty where all are."""
        changed = [*filter(None, map(remedies.changes_of, self.step.events()))]
        return {"remedies": [*map(remedies.in_words, changed)]} if changed else {}

    def _join(self) -> None:
        """The step has succeeded when all ranks have; one that fails ends the others, rank 0 too.

        Raises Interrupted where the step has to leave before that.
        """
        if self.rank:
            self.step.mark_done(str(self.attempt), self.rank)
        while self.rank == 0 and self.step.ranks_done(str(self.attempt)) < self.world_size - 1:
            if self.received is not None:
                raise Interrupted(None)
            time.sleep(0.1)

    def _job(self, described: Mapping[str, Any]) -> Job:
        return Job(
            directory=self.step.path,
            rank=self.rank,
            world_size=self.world_size,
            local_rank=self.local_rank,
            report=self._report,
            event=self._event,
            should_stop=lambda: self.received is not None,
            signal=lambda: self.received,
            fence=self.fence.check,
            disturb=self._disturbance(described),
        )

    def _disturbance(self, described: Mapping[str, Any]) -> Callable[..., None]:
        if not (planned := described.get("faults")):
            return undisturbed
        from jobs.healing.faults import Faults

        return Faults(planned, self.step, self.rank)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _report(self, metrics: Mapping[str, object]) -> None:
        if self.rank == 0:
            self.fence.check()
            self.step.add_metrics(metrics)

    def _event(self, name: str, **facts: object) -> None:
        if self.rank == 0:
            self.fence.check()
            self.step.add_event(name, {"job": self.attempt.job, **facts})

    def _leave(self, saved: Interrupted) -> None:
        """Record the interruption and go; where the time limit is the reason the step goes on."""
        name = signal.Signals(self.received).name if self.received else "none"
        self._event("interrupted", signal=name, position=saved.position, **used())
        print(f"{self.step.name} was told to stop by {name}: {saved}", flush=True)
        if self.received == WARNING and "SLURM_JOB_ID" in os.environ:
            jobs = self.step.continued(self.attempt.job)
            if self.rank == 0 and (reason := stuck(self.step.events(), jobs)):
                raise Failed("no_progress", reason)
            self._go_on_elsewhere()
        sys.exit(SAVED)

    def _go_on_elsewhere(self) -> NoReturn:
        """Have the step go on in another job, else in this one once more; then leave.

        The other ranks wait until srun ends them: one that left now would look as if it had ended.
        """
        if self.rank == 0 and not self._is_to_end():
            if not (refusal := hand_over(self.step)):
                self._event("handed_over")
                sys.exit(SAVED)
            self._event("not_handed_over", reason=refusal)
            if not self._is_to_end():
                self._requeue()
        while self.received == WARNING:
            time.sleep(0.1)  # Slurm ends the job; leaving now would let it count as finished
        sys.exit(SAVED)

    def _is_to_end(self) -> bool:
        """Whether somebody has asked for the end of this job: it will be told."""
        return any(
            each.cancel_requested
            for each in self.step.submissions()
            if each.token == self.attempt.token
        )

    def _requeue(self) -> None:
        """Ask to go back into the queue until Slurm agrees, or ends this process."""
        pause, longest = _PAUSES
        while refusal := requeue(self.attempt.job):
            self._event("not_requeued", reason=refusal)
            print(f"{self.step.name} cannot go back into the queue: {refusal}", flush=True)
            end = time.monotonic() + pause
            while time.monotonic() < end and self.received == WARNING:
                time.sleep(0.1)
            if self.received != WARNING:
                message = f"saved before its time limit, but not requeued: {refusal}"
                raise Failed("not_requeued", f"{message}: `resume` goes on from there")
            pause = min(2 * pause, longest)

    def _fail(self, error: Exception) -> None:
        """Record a failure, where the disk lets us, and end with a bad status."""
        cause, message = cause_of(error), sentence(error)
        try:
            self._record_failure(cause, message)
        except (OSError, ValueError, DataError) as trouble:
            print(f"the record of the failure is not whole: {sentence(trouble)}", flush=True)
        if cause in _WITH_TRACEBACK and not isinstance(error, Failed):
            raise error
        sys.exit(f"{self.step.name} failed: {cause}: {message}")

    def _record_failure(self, cause: str, message: str) -> None:
        import traceback  # 5 ms that every step would pay

        if self.world_size > 1 and cause in SECONDARY:
            self._let_first()
        self.fence.check()
        record = failure_record(self.attempt, self.rank, cause, message, traceback.format_exc())
        self.step.write_failure(record)
        self._event("failed", cause=cause, message=message, **used(), **_torch())

    def _let_first(self) -> None:
        """Wait until the rank that this one may have died of has recorded why: it has, or could
        not, when Slurm ends the others. Ranks wait for each other's end, so this may add up.
        """
        end = time.monotonic() + _LET_FIRST
        while self.received is None and time.monotonic() < end:
            time.sleep(0.05)


def used() -> dict[str, float]:
    """Memory (GB as Slurm has them, 2^30 bytes) that this process has had at most, beside that of
    its largest child, and the processor time of all of them that have ended, and of itself.
    """
    from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

    taken = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    peak = sum(each.ru_maxrss for each in taken) / 2**20  # Linux counts in KiB
    processor = sum(each.ru_utime + each.ru_stime for each in taken)
    return {"peak_memory_gb": round(peak, 3), "cpu_seconds": round(processor, 2)}


def _torch() -> dict[str, str]:
    """The version of torch, in a process that has imported it."""
    module = sys.modules.get("torch")
    return {"torch": str(module.__version__)} if module else {}


def unsuccessful(step: StepDir) -> str:
    """Why a step has not succeeded, as far as its result says; empty where it has."""
    return "" if step.result() is not None else step.result_flaw or _ABSENT


def check_needs(step: StepDir, needs: Sequence[str]) -> None:
    """Failed where a step that this one needs has not succeeded.

    Slurm starts a job behind one that it has forgotten, however that one ended.
    """
    end = time.monotonic() + _LATE
    told = False
    while missing := [name for name in needs if unsuccessful(step.upstream(name))]:
        if time.monotonic() > end:
            reasons = "; ".join(f"{name}: {unsuccessful(step.upstream(name))}" for name in missing)
            raise Failed("needs_missing", f"{reasons}: `resume` runs first what is missing")
        if not told:
            print(f"waiting {_LATE:g} s for the result of {', '.join(missing)}", flush=True)
        told = True
        time.sleep(0.5)


def _checked_and_run(name: str, given: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The result of a kind; UserError where the results of other steps make no valid settings."""
    from pydantic import ValidationError

    kind = kinds.load(name)
    try:
        settings = kind.Settings.model_validate(given)
    except ValidationError as error:
        places = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError(f"the settings do not hold at run time: {'; '.join(places)}") from None
    result: dict[str, Any] = kind.run(settings, job).model_dump(mode="json")
    return result


def resolve(step: StepDir, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with every `${step.field}` replaced by that step's result, `$${` by `${`."""

    def value_of(reference: str) -> Any:
        name, _, field = reference.partition(".")
        value: Any = step.upstream(name).result()
        for part in field.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"${{{reference}}}: the result of {name} has no {field!r}")
            value = value[part]
        return value

    for place, value in list(walk(settings)):
        if isinstance(value, str) and "${" in value:
            settings = replace(settings, place, fill_references(value, value_of))
    return settings


def _read_job_file(step: StepDir) -> dict[str, Any]:
    """job.json; UserError where it is not there, or not whole."""
    try:
        return step.job()
    except (OSError, ValueError, DataError) as error:
        message = f"{step.path} does not say what to do: {error}; was the run moved or changed?"
        raise UserError(message) from None


def main() -> None:
    """Run the step in the folder named on the command line.

    A step that is done leaves without Python's teardown. The teardown gives signals their default
    action back: the time-limit warning that came in it killed 30 of 30 steps that had succeeded.
    And it aborts about 1 of 60 processes of a gloo group ("terminate called without an active
    exception"). To Slurm either is a failed job, whose dependents never start.
    """
    work(StepDir(Path(sys.argv[1]).absolute()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
