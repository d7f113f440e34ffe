"""Runs on disk: this module and `step_folder` alone know a file name of the launcher.

    runs/<name>-<time>-<hex>/       sortable, unique, typeable by prefix
      pipeline.yaml  run.json       as given; resolved steps, cluster, user, host, commit, versions
      code/  dirty.diff             the snapshot the jobs run from (code.2/, dirty.2.diff after
                                    --fresh-code), and what of it is in no commit
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
from typing import Any, NamedTuple

from jobs.errors import UserError
from jobs.folders import folder_of
from jobs.program import NAME
from jobs.step_folder import StepDir, fact_of
from lact_asr.utils.errors import Unreadable
from lact_asr.utils.files import (
    PRIVATE,
    number,
    read_object,
    write_atomic,
    write_json,
)
from lact_asr.utils.locks import Busy, exclusive_lock, holder

_SUBMITTING = 20.0  # seconds for which a job that submits others is waited for
_PATIENCE = 1.0  # seconds: `holder` takes the lock for a moment to see whether it is free


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


class Run:
    """One submission of a pipeline: a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.given = path / "pipeline.yaml"
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

    def dirty(self, code: Path) -> Path:
        """What differs from the commit in a snapshot: dirty.diff, dirty.2.diff for code.2, ..."""
        return self.path / f"{code.name.replace('code', 'dirty')}.diff"

    @property
    def follows(self) -> Path:
        """The file that is there while jobs of the run are to submit what is left of it."""
        return self.path / "following.json"

    def following(self) -> Following | None:
        """What the jobs of the run submit; None for nothing, or where nobody can tell."""
        with contextlib.suppress(Unreadable):
            if (found := read_object(self.follows)) is not None:
                return Following(
                    tuple(str(step) for step in fact_of(found, "steps", [])),
                    fact_of(found, "environment", {}),
                    fact_of(found, "stopped", ""),
                    fact_of(found, "keeper", ""),
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
        self.root = root.absolute() if root else folder_of("TRAINYARD_RUNS", "runs")

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
