"""Runs on disk: the only module that knows a file name of the launcher.

    runs/<name>-<time>-<hex>/       sortable, unique, typeable by prefix
      pipeline.yaml  run.json       as given; resolved steps, cluster, user, host, commit, versions
      code/  dirty.diff             the snapshot the jobs run from (code.2/ ... after --fresh-code)
      following.json                what its jobs submit, where not all fitted into the queue
      steps/<step>/
        job.json                    kind, settings, resources: all the worker reads
        submissions.jsonl           the intent before each submission, the job's id right after it,
                                    the request to end it, and that it has ended
        logs/                       one file per rank
        attempt.json                the newest start of the step: older ones do not write any more
        metrics.jsonl events.jsonl  progress and what happened
        faults.jsonl                what was put in on purpose: `faults` of the pipeline file
        failure.json                cause, message, traceback, host, rank, job
        result.json                 written last, by rename; means success
        earlier.1/ ...              what the step had done before `resume --redo`

The launcher writes the upper half of this list, the worker the lower half (from logs/ on): never
the same file. Imports nothing heavy: `status` needs 60 ms in all.
"""

import contextlib
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from jobs.errors import UserError
from jobs.program import NAME
from lact_asr.utils.errors import Unreadable
from lact_asr.utils.files import (
    PRIVATE,
    append_json,
    json_lines,
    number,
    read_json,
    read_object,
    write_atomic,
    write_json,
)
from lact_asr.utils.locks import Busy, exclusive_lock, holder

_TAIL = 1 << 16  # bytes read from the end of metrics.jsonl for the newest line
_SUBMITTING = 20.0  # seconds for which a job that submits others is waited for
_PATIENCE = 1.0  # seconds: `holder` takes the lock for a moment to see whether it is free
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


class Following(NamedTuple):
    """What the jobs of a run submit by themselves when they end, as Slurm takes more of them."""

    steps: tuple[str, ...] = ()  # none while a launcher is at work and has met no limit
    environment: Mapping[str, str] = MappingProxyType({})  # what that launcher submitted with
    stopped: str = ""  # why the last try came to nothing
    keeper: str = ""  # the job that stays in its place to try again
    kept: float = 0.0  # when it has last tried, seconds since 1970


def user() -> str:
    """The name of the user whose process this is, whatever the environment says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container without an entry for its user
        return str(os.geteuid())


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
            token, at = _of(line, "token", ""), number(line.get("time"))
            if not token or at is None:
                continue
            known = tries.get(token, Submission(token, at))
            tries[token] = known._replace(
                job=_of(line, "job", known.job),
                cancel_requested=at if line.get("cancel_requested") else known.cancel_requested,
                ended=_of(line, "ended", known.ended),
                refused=_of(line, "refused", known.refused),
                continues=_of(line, "continues", known.continues),
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
        return [line for line in lines if _of(line, "event", "") and number(line.get("time"))]

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


class Run:
    """One submission of a pipeline: a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.given = path / "pipeline.yaml"
        self.dirty = path / "dirty.diff"
        self._info: dict[str, Any] | None = None

    def write_given(self, text: str) -> None:
        """Keep the pipeline file as it was given."""
        write_atomic(self.given, text, PRIVATE)

    def info(self) -> dict[str, Any]:
        """Resolved pipeline, cluster, user, host, commit, versions."""
        if self._info is None:
            self._info = _run_facts(self.path / "run.json")
        return self._info

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Store `info()`."""
        write_json(self.path / "run.json", info, PRIVATE)
        self._info = None

    def step(self, name: str) -> StepDir:
        """The folder of a step."""
        return StepDir(self.path / "steps" / name)

    def steps(self) -> list[dict[str, Any]]:
        """The steps as run.json has them, in dependency order."""
        steps: list[dict[str, Any]] = self.info()["steps"]
        return steps

    def names(self) -> list[str]:
        """The names of the steps, in dependency order."""
        return [step["name"] for step in self.steps()]

    def codes(self) -> list[Path]:
        """The code snapshots, oldest first."""
        return sorted(self.path.glob("code*"), key=lambda path: int(path.suffix[1:] or 1))

    def next_code(self) -> Path:
        """Where the next snapshot goes; the earlier ones stay for the jobs that use them."""
        count = len(self.codes())
        return self.path / (f"code.{count + 1}" if count else "code")

    @property
    def follows(self) -> Path:
        """The file that is there while jobs of the run are to submit what is left of it."""
        return self.path / "following.json"

    def following(self) -> Following | None:
        """What the jobs of the run submit; None for nothing, or where nobody can tell."""
        with contextlib.suppress(Unreadable):
            if (found := read_object(self.follows)) is not None:
                return Following(
                    tuple(str(step) for step in _of(found, "steps", [])),
                    _of(found, "environment", {}),
                    _of(found, "stopped", ""),
                    _of(found, "keeper", ""),
                    number(found.get("kept")) or 0.0,
                )
        return None

    def write_following(self, following: Following | None) -> None:
        """Store `following()`, while the lock is held."""
        if following is None:
            self.follows.unlink(missing_ok=True)
        else:
            environment = dict(following.environment)
            write_json(self.follows, {**following._asdict(), "environment": environment}, PRIVATE)

    @contextlib.contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Held while jobs are submitted or cancelled; UserError where somebody else holds it for
        longer than so many seconds, and for a run of another user. Jobs of the run that submit what
        is left of it take it for seconds only.
        """
        rest = self.following()
        patience = patience or (_SUBMITTING if rest and rest.steps else _PATIENCE)
        if (owner := self.info()["user"]) != user():
            raise UserError(f"{self.name} belongs to {owner}, and you are {user()}: ask {owner}")
        path = self.path / "lock"
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(exclusive_lock(path, patience=patience))
            except Busy as busy:
                raise UserError(f"{self.name} is being submitted or cancelled by {busy}") from None
            except OSError as error:
                raise UserError(f"{path} cannot be written: {error.strerror}") from None
            yield

    def busy(self) -> str:
        """Who is submitting or cancelling at this moment; empty for nobody."""
        return holder(self.path / "lock")


def is_run(path: Path) -> bool:
    """Whether a folder is a run, be it one that cannot be read (UserError for one that another user
    keeps closed).
    """
    try:
        return (path / "run.json").exists()
    except PermissionError:
        raise UserError(f"{path} cannot be read: it belongs to another user") from None
    except OSError:  # no name that a file could have
        return False


class RunStore:
    """The folder of all runs: `$TRAINYARD_RUNS`, else ./runs."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or Path(os.environ.get("TRAINYARD_RUNS", "runs"))).absolute()

    def new_name(self, pipeline: str) -> str:
        """Sortable by time, unique, typeable by its beginning."""
        return f"{pipeline}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"

    def create(self, name: str) -> Run:
        """A new, empty run, its owner's alone: settings and environments may hold passwords."""
        path = self.root / name
        path.mkdir(mode=0o700, parents=True)
        (path / "steps").mkdir()
        return Run(path)

    def runs(self) -> list[Run]:
        """Every run, newest last."""
        found = self.root.glob("*/run.json") if self.root.is_dir() else iter(())
        by_time = sorted(found, key=lambda file: (file.stat().st_mtime, file.parent.name))
        return [Run(file.parent) for file in by_time]

    def find(self, text: str | None) -> Run:
        """A run by folder, name or unique prefix; the newest for None (UserError otherwise)."""
        if text and is_run(Path(text)):
            return Run(Path(text).absolute())
        runs = self.runs()
        if not runs:
            raise UserError(f"no runs in {self.root}: start one with `{NAME} run demo`")
        if not text:
            return runs[-1]
        matches = [run for run in runs if run.name.startswith(text)]
        exact = [run for run in matches if run.name == text]
        if len(exact or matches) == 1:
            return (exact or matches)[0]
        names = ", ".join(run.name for run in (matches or runs)[-5:])
        what = "several runs begin with" if matches else "no run begins with"
        raise UserError(f"{what} {text!r}: {'' if matches else 'the newest are '}{names}")

    def find_step(self, text: str | None) -> tuple[Run, StepDir | None]:
        """The run, and the step where `RUN/STEP` names one (UserError otherwise)."""
        head, slash, name = (text or "").rstrip("/").rpartition("/")
        folder = Path(text or "").absolute()
        if folder.parent.name == "steps" and is_run(folder.parents[1]):
            head, name = str(folder.parents[1]), folder.name
        elif not slash or is_run(folder):
            return self.find(text), None
        run = self.find(head.removesuffix("/steps"))
        names = [step["name"] for step in run.steps()]
        if name not in names:
            raise UserError(f"{run.name} has no step {name!r}: its steps are {', '.join(names)}")
        return run, run.step(name)


def _of(facts: Mapping[str, Any], name: str, otherwise: _Fact) -> _Fact:
    """A fact, where it is of the right type."""
    value = facts.get(name)
    return value if isinstance(value, type(otherwise)) else otherwise


def _run_facts(path: Path) -> dict[str, Any]:
    """What run.json says; UserError where something that every reader needs is not in it."""
    try:
        info = read_object(path) or {}
    except Unreadable as error:
        raise UserError(str(error)) from None
    if wrong := next(_wrong_facts(info), ""):
        raise UserError(f"{path} cannot be read: {wrong!r} is missing or wrong")
    return info


def _wrong_facts(info: Mapping[str, Any]) -> Iterator[str]:
    """The keys of run.json that do not hold what they should."""
    for name in ("pipeline", "user", "cwd"):
        if not isinstance(info.get(name), str):
            yield name
    if number(info.get("created")) is None:
        yield "created"
    if not isinstance(info.get("scheduler", ""), str):
        yield "scheduler"
    cluster = info.get("cluster")
    words = [cluster.get(key) for key in ("name", "backend")] if isinstance(cluster, dict) else [0]
    if not all(isinstance(word, str) for word in words):
        yield "cluster"
    steps = info.get("steps")
    if not (isinstance(steps, list) and _are_steps(steps)):
        yield "steps"


def _are_steps(steps: list[Any]) -> bool:
    """Whether each value describes a step behind steps that come before it."""
    known: set[str] = set()
    for step in steps:
        if not _is_step(step, known):
            return False
        known.add(step["name"])
    return True


def _is_step(step: object, known: set[str]) -> bool:
    """Whether a value describes a step whose folder can exist, behind steps that are known."""
    if not isinstance(step, dict):
        return False
    name, kind, needs = step.get("name"), step.get("kind"), step.get("needs")
    return (
        isinstance(name, str)
        and name.isprintable()
        and Path(name).name == name
        and isinstance(kind, str)
        and isinstance(needs, list)
        and all(isinstance(need, str) and need in known for need in needs)
    )
