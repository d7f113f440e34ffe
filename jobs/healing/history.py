"""What the files of one step say of all its starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jobs.healing.spans import Start, starts
from jobs.step_folder import StepDir, Submission
from jobs.store import Run


class Facts(NamedTuple):
    """The record of a step. What cannot be read is missing from it, and said in `flaws`."""

    name: str
    kind: str
    needs: tuple[str, ...]
    tries: list[Submission]  # oldest first
    histories: list[list[Start]]  # starts; each time the step began anew after `resume --redo`
    result: bool
    job: Mapping[str, Any]  # job.json
    events: list[dict[str, Any]]
    flaws: list[str]

    @property
    def newest(self) -> str:
        """The job of the newest submission."""
        return self.tries[-1].job if self.tries else ""

    @property
    def every(self) -> list[Start]:
        """Every start, oldest first."""
        return [start for history in self.histories for start in history]

    @property
    def resources(self) -> Mapping[str, Any]:
        """What was asked for."""
        return _object(self.job.get("resources"))

    @property
    def training(self) -> Mapping[str, Any]:
        """The settings of its training, where it is one."""
        return _object(_object(self.job.get("settings")).get("training"))


def read(run: Run, step: Mapping[str, Any]) -> Facts:
    """The files of a step, as run.json has it."""
    folder = run.step(step["name"])
    folders = [*map(StepDir, _earlier(folder.path)), folder]
    events = [each.events() for each in folders]
    histories = [
        starts(happened, each.metrics()) for each, happened in zip(folders, events, strict=True)
    ]
    tries, result, job = folder.submissions(), folder.result() is not None, folder.described()
    return Facts(
        name=step["name"],
        kind=step["kind"],
        needs=tuple(step["needs"]),
        tries=tries,
        histories=histories,
        result=result,
        job=job,
        events=[event for happened in events for event in happened],
        flaws=[flaw for each in folders for flaw in each.flaws.values()],
    )


def _earlier(folder: Path) -> list[Path]:
    """What the step had done before it began anew, oldest first."""
    found = [path for path in folder.glob("earlier.*") if path.suffix[1:].isdigit()]
    return sorted(found, key=lambda path: int(path.suffix[1:]))


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
