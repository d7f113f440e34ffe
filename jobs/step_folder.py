"""The folder of one step: what was submitted, what happened, what came of it.

Which files there are, and who writes which, is in `jobs.store`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lact_asr.utils.errors import Unreadable
from lact_asr.utils.files import (
    PRIVATE,
    append_json,
    json_lines,
    number,
    read_json,
    read_object,
    write_json,
)

_TAIL = 1 << 16  # bytes read from the end of metrics.jsonl for the newest line
_SUBMISSIONS = "submissions.jsonl"
_Fact = TypeVar("_Fact", str, bool, list[Any], dict[str, Any])


class Submission(NamedTuple):
    """One try at submitting a step; `job` is empty where its outcome was never recorded."""

    token: str
    time: float  # of the intent, seconds since 1970
    job: str = ""
    cancel_requested: float = 0.0  # when its end was asked for, seconds since 1970; 0: never
    ended: bool = False  # the cluster has said that its job, asked to end, is gone
    refused: str = ""  # what the cluster said when it refused it: nothing was queued
    continues: str = ""  # the token of the job that this one goes on for: see `scheduling.relay`


def is_own(failure: Mapping[str, Any] | None, submission: Submission | None) -> bool:
    """Whether a submission failed like this by itself, and not because it was asked to end."""
    if failure is None or submission is None or failure["job"] != submission.job:
        return False
    if not failure.get("decided", True):  # its job is looking whether it can begin again
        return False
    asked = submission.cancel_requested
    return not asked or (number(failure.get("time")) or 0.0) < asked


def _of_one_start(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("job", "restart"))


class StepDir:
    """The folder of one step.

    A file that cannot be read counts as absent, so that it hides nothing else; `flaws` has, by the
    file's name, a sentence that says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.logs = path / "logs"
        self.claim_lock = path / ".attempt.lock"
        self._half = path / ".earlier"  # what is being set aside
        self.flaws: dict[str, str] = {}

    @contextlib.contextmanager
    def _note_flaws(self, name: str) -> Iterator[Path]:
        """Read a file; why that cannot be done goes into `flaws`."""
        self.flaws.pop(name, None)
        try:
            yield self.path / name
        except Unreadable as error:
            self.flaws[name] = str(error)

    def _lines(self, name: str, tail: int = 0) -> list[dict[str, Any]]:
        with self._note_flaws(name) as path:
            return list(json_lines(path, tail))
        return []

    def _object(self, name: str, *texts: str) -> dict[str, Any] | None:
        """A JSON object in which these keys hold text."""
        with self._note_flaws(name) as path:
            found = read_object(path)
            wrong = [
                key for key in texts if found is not None and not isinstance(found.get(key), str)
            ]
            if wrong:
                raise Unreadable(path, f"{wrong[0]!r} is not a text in it")
            return found
        return None

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Store what the worker will read."""
        self.logs.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "job.json", job, PRIVATE)

    def job(self) -> dict[str, Any]:
        """Kind, settings, resources, gate and needs of the step."""
        job: dict[str, Any] = read_json(self.path / "job.json")
        return job

    def described(self) -> dict[str, Any]:
        """The same, for those who only look: what cannot be read is empty, and a flaw."""
        return self._object("job.json") or {}

    def upstream(self, name: str) -> "StepDir":
        """Another step of the same run."""
        return StepDir(self.path.parent / name)

    def result(self) -> dict[str, Any] | None:
        """The result, where the step has succeeded; one that cannot be read is no success."""
        return self._object("result.json")

    @property
    def result_flaw(self) -> str:
        """Why a result that is there cannot be read; empty where it can, or is not there."""
        return self.flaws.get("result.json", "")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Success: the last thing a step does."""
        write_json(self.path / "result.json", result)

    def claim(self) -> dict[str, Any] | None:
        """The newest start of the step: token, job, restart, host and time."""
        return self._object("attempt.json")

    def write_claim(self, claim: Mapping[str, Any]) -> None:
        """A start of the step begins, while `claim_lock` is held."""
        write_json(self.path / "attempt.json", claim)

    def mark_done(self, attempt: str, rank: int) -> None:
        """A rank other than 0 has done its part."""
        (self.logs / f"{attempt}_{rank}_done").touch()

    def ranks_done(self, attempt: str) -> int:
        """How many ranks other than 0 have done their part."""
        return len(list(self.logs.glob(f"{attempt}_*_done")))

    def failure(self) -> dict[str, Any] | None:
        """How the step failed, where it has: cause, message, traceback, host, rank, job."""
        found = self._object("failure.json", "message", "job")
        if found is not None and not isinstance(found.get("cause"), str):
            found["cause"] = str(found.get("class", "error"))  # a run from before the causes
        return found

    def forget_ranks_done(self, attempt: str) -> None:
        """The step runs again, as the same attempt: every rank has its part before it again."""
        for mark in self.logs.glob(f"{attempt}_*_done"):
            mark.unlink()

    def has_ended(self) -> bool:
        """Whether the newest submission has recorded how it ended."""
        return is_own(self.failure(), self.latest()) or self.result() is not None

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        """Record how a rank has failed; the first rank of a start to fail has the true reason and
        stays. Whether the job begins again is decided when all ranks have ended.
        """
        earlier = self.failure()
        if earlier is None or not _of_one_start(earlier, failure):
            write_json(self.path / "failure.json", {**failure, "decided": False})

    def decide_failure(self, failure: Mapping[str, Any]) -> None:
        """Record how a step has failed, for good."""
        write_json(self.path / "failure.json", {**failure, "decided": True})

    def set_aside(self) -> None:
        """Move what the step has done to `earlier.N`: it begins anew.

        Submissions and logs stay, with the attempt that fences the workers. The result goes first:
        cut short, the step has not succeeded, and the rest follows before it is submitted again.
        """
        stays = ("job.json", "submissions.jsonl", "logs", "attempt.json", ".attempt.lock")
        earlier = list(self.path.glob("earlier.*"))
        kept = {*(self.path / name for name in stays), *earlier, self._half}
        moves = [path for path in self.path.iterdir() if path not in kept]
        self._half.mkdir(exist_ok=True)
        for path in sorted(moves, key=lambda path: path.name != "result.json"):
            path.rename(self._half / path.name)
        self._half.rename(self.path / f"earlier.{1 + len(earlier)}")

    def finish_setting_aside(self) -> None:
        """Move the rest, where `set_aside` was cut short."""
        if self._half.exists():
            self.set_aside()

    def forget_failure(self) -> None:
        """The step runs again: an earlier failure no longer says how it is."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def forget_earlier_failure(self, **start: Any) -> None:
        """The same for rank 0 of a start (`job`, `restart`), of which another rank may have failed
        before this one has come as far.
        """
        failure = self.failure()
        if failure is None or not _of_one_start(failure, start):
            self.forget_failure()

    def submissions(self) -> list[Submission]:
        """Every try at submitting this step, oldest first.

        One that goes on for another job takes its place when its id is on record: until then the
        step is that other job's, and the new one comes before it here.
        """
        tries: dict[str, Submission] = {}
        for line in self._lines(_SUBMISSIONS):
            token, at = fact_of(line, "token", ""), number(line.get("time"))
            if not token or at is None:
                continue
            known = tries.get(token, Submission(token, at))
            tries[token] = known._replace(
                job=fact_of(line, "job", known.job),
                cancel_requested=at if line.get("cancel_requested") else known.cancel_requested,
                ended=fact_of(line, "ended", known.ended),
                refused=fact_of(line, "refused", known.refused),
                continues=fact_of(line, "continues", known.continues),
            )
        return sorted(tries.values(), key=lambda each: not each.continues or bool(each.job))

    @property
    def submissions_flaw(self) -> str:
        """Why nobody can tell what was submitted; empty where that is known."""
        return self.flaws.get(_SUBMISSIONS, "")

    def latest(self) -> Submission | None:
        """The newest try, or None for a step never submitted."""
        tries = self.submissions()
        return tries[-1] if tries else None

    def continued(self, job: str) -> set[str]:
        """The ids of a job and of those that it goes on for, one after the other."""
        tries = {each.token: each for each in self.submissions()}
        found, each = {job}, next((each for each in tries.values() if each.job == job), None)
        while each := tries.get(each.continues) if each else None:
            found.add(each.job)
        return found

    def add_submission(self, token: str, **facts: Any) -> None:
        """Append what is known of a try: the intent (no facts, or the token of the job that it
        `continues`), its id (`job`), that its end was asked for (`cancel_requested`), that it has
        ended (`ended`), why it was refused (`refused`).

        An intent and a request must outlive a crash of this machine; what the cluster said can be
        asked again.
        """
        lasting = not facts or bool({"cancel_requested", "continues"} & facts.keys())
        append_json(self.path / _SUBMISSIONS, {"token": token, **facts}, sync=lasting)

    def add_metrics(self, metrics: Mapping[str, object]) -> None:
        """Append one line of metrics."""
        append_json(self.path / "metrics.jsonl", metrics, sync=False)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics."""
        return self._lines("metrics.jsonl")

    def progress(self) -> dict[str, Any]:
        """The newest value of each metric near the end of metrics.jsonl."""
        newest: dict[str, Any] = {}
        for line in self._lines("metrics.jsonl", _TAIL):
            newest.update(line)
        return newest

    def add_event(self, name: str, facts: Mapping[str, object]) -> None:
        """Append one event."""
        append_json(self.path / "events.jsonl", {"event": name, **facts}, sync=False)

    def add_fault(self, facts: Mapping[str, object]) -> None:
        """A fault is about to be put in: known even to a step that it kills."""
        append_json(self.path / "faults.jsonl", facts)

    def faults(self) -> list[dict[str, Any]]:
        """The faults put into the step so far: as planned, at which step, on which rank."""
        return self._lines("faults.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """Everything that happened to the step, oldest first."""
        lines = self._lines("events.jsonl")
        return [line for line in lines if fact_of(line, "event", "") and number(line.get("time"))]

    def log_files(self, rank: int) -> list[Path]:
        """The log files of one rank, oldest first: standard output and error of each job."""
        times: dict[Path, float] = {}
        endings = (f"_{rank}_log.out", f"_{rank}_log.err")
        for file in [file for file in self._logs() if file.name.endswith(endings)]:
            times[file] = 0.0
            with contextlib.suppress(OSError):  # who reads it says what is wrong with it
                times[file] = file.stat().st_mtime
        return sorted(times, key=lambda file: times[file])

    def logs_of(self, job: str) -> list[Path]:
        """Where rank 0 of a job has written: standard error, then standard output."""
        return [self.logs / f"{job}_0_log.{ending}" for ending in ("err", "out")]

    def last_written(self, job: str) -> float | None:
        """When the log of rank 0 of a job last grew; None without one."""
        times = []
        for path in self.logs_of(job):
            with contextlib.suppress(OSError, ValueError):  # ValueError: no name of a file
                times.append(path.stat().st_mtime)
        return max(times, default=None)

    def logs_of_job(self, job: str) -> list[Path]:
        """Where all ranks of a job, and Slurm's own programs, complain."""
        return sorted({*self.logs.glob(f"{job}_*_log.err"), *self.logs.glob(f"{job}_*_log.out")})

    def ranks_with_log(self) -> list[str]:
        """The ranks that have a log."""
        return sorted({file.name.split("_")[-2] for file in self._logs() if "_log." in file.name})

    def _logs(self) -> list[Path]:
        with self._note_flaws("logs") as folder:
            try:
                return list(folder.iterdir())
            except FileNotFoundError:
                return []
            except OSError as error:
                raise Unreadable(folder, error.strerror) from None
        return []


def fact_of(facts: Mapping[str, Any], name: str, otherwise: _Fact) -> _Fact:
    """A fact, where it is of the right type."""
    value = facts.get(name)
    return value if isinstance(value, type(otherwise)) else otherwise
