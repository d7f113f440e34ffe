"""The schema of a pipeline: what the YAML file may say, with units and bounds.

A `Pipeline` is a list of `Step`s in dependency order. A step has a kind (what), settings (with
what: the kind's own schema), resources (on how much) and needs (after what).
`jobs.reading.pipeline_file` makes these from a file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from lact_asr.config.base import Frozen

NAME = r"^[a-z][a-z0-9_]{0,39}$"  # re.fullmatch: Python's `$` also matches before a last newline
_UNITS = {"m": 1, "h": 60, "d": 1440}
_TIME = r"^(?=.)(\d+d)?(\d+h)?(\d+m)?$"


@dataclass(frozen=True)
class Present:
    """Marks a setting whose path has to exist when the pipeline is read."""


@dataclass(frozen=True)
class Made:
    """Marks a setting whose path the step makes, where it is not there."""


@dataclass(frozen=True)
class Inside:
    """Marks a setting with names of what is in the folder that another setting says."""

    setting: str


# A result that counts 100 % as 1: gates know, and whoever writes per cent is told.
Fraction = Annotated[float, Field(json_schema_extra={"unit": "fraction"})]


def parse_minutes(value: object) -> int:
    """Minutes in `90m`, `12h`, `2d` or `1d12h`; a bare number has no unit and is refused."""
    if not isinstance(value, str) or not re.fullmatch(_TIME, value):
        raise ValueError(
            f"write a time with its unit, such as 30m, 12h, 2d or 1d12h, not {value!r}"
        )
    minutes = sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([dhm])", value))
    if minutes == 0:
        raise ValueError("a time must be longer than zero")
    return minutes


def format_minutes(minutes: int) -> str:
    """The shortest way to write it: 90 -> `1h30m`."""
    days, rest = divmod(minutes, 1440)
    hours, minutes = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0m"


Minutes = Annotated[
    int,
    BeforeValidator(parse_minutes),
    PlainSerializer(format_minutes, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _TIME, "examples": ["30m", "12h", "2d"]}),
]


def check_variables(environment: Mapping[str, object], taken: Mapping[str, str]) -> None:
    """ValueError with every name that no variable has, or that is taken: -> what to write."""
    mistakes = [
        f"{name!r} is no name of a variable: write letters, digits and _, no digit first"
        for name in environment
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)
    ]
    mistakes += [
        f"{name} is not set here: write {taken[name]}" for name in environment if name in taken
    ]
    if mistakes:
        raise ValueError("; ".join(mistakes))


class Resources(Frozen):
    """What one step asks of the cluster: one process per GPU, one per node without GPUs."""

    time: Minutes = Field(60, description="time limit, with unit: 30m, 12h, 2d")
    nodes: int = Field(1, ge=1, description="number of nodes")
    gpus: int = Field(0, ge=0, description="GPUs per node; one process each")
    cpus: int = Field(1, ge=1, description="CPU cores per process")
    memory_gb: float = Field(4, gt=0, description="memory per node, in GB")

    @property
    def processes_per_node(self) -> int:
        """One per GPU; one where there is none."""
        return max(1, self.gpus)

    @property
    def world_size(self) -> int:
        """Processes in the whole job."""
        return self.nodes * self.processes_per_node


class Space(NamedTuple):
    """Disk that a step will take outside of its run: a kind may have `space(settings) -> Space`."""

    folder: Path
    bytes: int  # free ones needed now, for what is not there yet
    what: str  # "librispeech (train-clean-100, dev-clean)"
    elsewhere: str  # what to write where they are not free


class Fault(Frozen):
    """A fault that is put into a training on purpose: `jobs.healing.faults`."""

    fault: Literal[
        "kill",
        "preempt",
        "time_limit",
        "out_of_memory_gpu",
        "out_of_memory_host",
        "nan_weight",
        "nan_gradient",
        "inf_gradient",
        "nan_data",
        "rate",
        "hang",
        "disk_full",
        "missing_file",
        "import_error",
        "port_in_use",
        "bug",
    ] = Field(
        description="what happens: a process gets SIGKILL (kill) or the warning of the time limit; "
        "the job goes back into the queue (preempt); memory runs out; NaN in a weight, a gradient "
        "or a batch, infinity in a gradient; the learning rate times 1000; a rank that hangs; a "
        "full disk; or what else ends a program"
    )
    at_step: int = Field(ge=1, description="training step before which it happens first")
    rank: int | None = Field(0, ge=0, description="the process it happens to; null is all of them")
    times: int = Field(1, ge=1, description="how often, at most once a step, over all starts")


class Step(Frozen):
    """One step as the run stores it: everything resolved except references to results."""

    name: str
    kind: str
    settings: dict[str, Any]
    resources: Resources
    needs: tuple[str, ...] = ()
    gate: dict[str, str] = Field({})
    remedies: dict[str, int] | None = None  # cause -> how often it is answered; None: the defaults
    faults: tuple[Fault, ...] = ()


class Pipeline(Frozen):
    """Named steps, every step behind the steps it needs."""

    name: str
    description: str = ""
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        """The step of that name (KeyError where there is none)."""
        return {step.name: step for step in self.steps}[name]
