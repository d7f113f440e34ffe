"""The compute node's side: job.json -> the kind's `run` -> result.json, or failure.json.

Submitit is given `Worker(step_dir)`, a path; the job runs `main()` below on that path. A signal
only sets a flag: the kind saves at the next step boundary and raises `Interrupted`. After the
time-limit warning (USR2) the worker then asks Slurm to requeue the job, under the same id, so that
the steps behind it stay valid; after SIGTERM (preemption, scancel) it just leaves. A started step
reads everything from disk.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from jobs import gate, kinds
from jobs.errors import Interrupted, StepFailed, UserError
from jobs.job import Job
from jobs.places import replace, walk
from jobs.references import filled
from jobs.store import StepDir

WARNING = signal.SIGUSR2  # sent some time before the limit (submitit's choice)
_PATIENCE = 3  # time limits met at one position after which a step is not started again
_SAVED = 75  # exit status of a step that saved and left (EX_TEMPFAIL)


class Worker:
    """One process of one step; picklable, and equal to its path."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = str(directory)

    def __call__(self) -> None:
        """Run the step; what goes wrong is recorded, then ends the process with a bad status."""
        step = StepDir(Path(self.directory))
        if step.result() is not None:  # requeued by Slurm after it had finished
            return
        if _superseded(step):
            print(f"{step.name} was submitted anew: this job leaves its place", flush=True)
            return
        _Process(step).run()


class _Process:
    def __init__(self, step: StepDir) -> None:
        self.step = step
        self.rank, self.world_size, self.local_rank = _place()
        self.job_id = os.environ.get("SLURM_JOB_ID") or os.environ.get("TRAINYARD_JOB", "")
        self.received: int | None = None

    def run(self) -> None:
        for number in (WARNING, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        described = self.step.job()
        if self.rank == 0:
            self.step.forget_failure()
        os.environ.setdefault("OMP_NUM_THREADS", str(described["resources"]["cpus"]))
        # threads that spin while they wait cost 4 times the time where cores are shared
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._event("resumed" if self.step.events() else "started", host=os.uname().nodename)
        started = time.time()
        try:
            result = self._result(described)
            self._join()
        except Interrupted as saved:
            self._leave(saved)
        except Exception as error:
            self._fail(error)
            if failure_class(error) == "error" and not isinstance(error, UserError):
                raise  # a bug of ours: its traceback belongs into the log
            sys.exit(f"{self.step.name} failed: {failure_class(error)}: {error}")
        else:
            if self.rank == 0:
                self._event("finished", seconds=round(time.time() - started, 1))
                self.step.write_result(result)

    def _result(self, described: Mapping[str, Any]) -> dict[str, Any]:
        kind = kinds.load(described["kind"])
        given = resolve(self.step, described["settings"])
        try:
            settings = kind.Settings.model_validate(given)
        except ValidationError as error:
            places = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise UserError(f"the settings do not hold at run time: {'; '.join(places)}") from None
        result = kind.run(settings, self._job()).model_dump(mode="json")
        if reason := gate.missed(described["gate"], result):
            raise StepFailed("gate", reason)
        values: dict[str, Any] = result
        return values

    def _join(self) -> None:
        """The step has succeeded when all ranks have; one that fails ends the others, rank 0 too.

        Raises Interrupted where the step has to leave before that.
        """
        attempt = f"{self.job_id}.{os.environ.get('SLURM_RESTART_COUNT', 0)}"
        if self.rank:
            self.step.mark_done(attempt, self.rank)
        while self.rank == 0 and self.step.ranks_done(attempt) < self.world_size - 1:
            if self.received is not None:
                raise Interrupted(None)
            time.sleep(0.1)

    def _job(self) -> Job:
        return Job(
            directory=self.step.path,
            rank=self.rank,
            world_size=self.world_size,
            local_rank=self.local_rank,
            report=self.step.add_metrics if self.rank == 0 else _say_nothing,
            event=self._event,
            should_stop=lambda: self.received is not None,
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _event(self, name: str, **facts: object) -> None:
        if self.rank == 0:
            self.step.add_event(name, {"job": self.job_id, **facts})

    def _leave(self, saved: Interrupted) -> None:
        """Record the interruption and go, through the queue where the time limit is the reason."""
        name = signal.Signals(self.received).name if self.received else "none"
        self._event("interrupted", signal=name, position=saved.position)
        if self._stuck(saved.position):
            message = (
                f"met its time limit {_PATIENCE} times at position {saved.position} without "
                "getting further: write a longer resources.time or save more often"
            )
            self._fail(StepFailed("no_progress", message))
            sys.exit(f"{self.step.name} failed: {message}")
        if self.received == WARNING and "SLURM_JOB_ID" in os.environ:
            if self.rank == 0:
                requeue(os.environ["SLURM_JOB_ID"])
            time.sleep(60)  # Slurm ends the job; leaving now would let it count as finished
        sys.exit(_SAVED)

    def _stuck(self, position: int | None) -> bool:
        """Whether one allocation is too short for the step; preemption says nothing of that."""
        limits = [e["position"] for e in self.step.events() if e.get("signal") == WARNING.name]
        return position is not None and limits[-_PATIENCE:] == [position] * _PATIENCE

    def _fail(self, error: Exception) -> None:
        import traceback  # 5 ms that every step would pay

        described = failure_class(error)
        message = str(error).strip() or type(error).__name__
        self._event("failed", failure_class=described, message=message)
        self.step.write_failure(
            {
                "class": described,
                "message": message,
                "traceback": traceback.format_exc(),
                "host": os.uname().nodename,
                "rank": self.rank,
                "job": self.job_id,
                "time": time.time(),
            }
        )


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
            settings = replace(settings, place, filled(value, value_of))
    return settings


def failure_class(error: Exception) -> str:
    """One word for an exception: what a remedy, or a person, answers to."""
    if isinstance(name := getattr(error, "failure_class", None), str):
        return name
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out_of_memory"
    return "data" if type(error).__name__ == "DataError" else "error"


def _superseded(step: StepDir) -> bool:
    """This job reached the queue after `resume` had looked for it, and submitted the step anew.

    An sbatch that outlives a killed launcher, or a slow controller, does that: the token decides.
    """
    tokens = [submission.token for submission in step.submissions()]
    return os.environ.get("SLURM_JOB_NAME") in tokens[:-1]


def requeue(job_id: str) -> None:
    """Put the running job back into the queue under its own id."""
    subprocess.run(["scontrol", "requeue", job_id], check=True, timeout=60)


def _place() -> tuple[int, int, int]:
    """Rank, world size and local rank, from Slurm's variables or from torchrun's names."""
    slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    names = slurm if "SLURM_PROCID" in os.environ else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, size, local = (int(os.environ.get(n, d)) for n, d in zip(names, "010", strict=True))
    return rank, size, local


def _say_nothing(metrics: Mapping[str, object]) -> None:
    """Only rank 0 keeps the record."""


def main() -> None:
    """Run the step in the folder named on the command line.

    One of several ranks leaves without Python's teardown: everything is written by then, and about
    1 of 60 processes of a gloo group aborts in it ("terminate called without an active exception"),
    which to Slurm is a failed job whose dependents never start.
    """
    Worker(Path(sys.argv[1]).absolute())()
    if _place()[1] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
