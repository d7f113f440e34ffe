"""What a pipeline file may say around the settings of the kinds."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from jobs import gate
from jobs.causes import CAUSES
from jobs.errors import nearest
from jobs.pipeline import NAME, Fault
from jobs.program import NAME as PROGRAM
from jobs.reading.references import fill_references
from lact_asr.config.base import Frozen


def _condition(text: object) -> object:
    known = not isinstance(text, str) or "${" not in text
    gate.parse_condition(text if known else fill_references(str(text), lambda _: 0))
    return text


Condition = Annotated[str, BeforeValidator(_condition)]


def _causes(value: object) -> object:
    """`none` is no remedy at all; anything else names causes (ValueError for what is none)."""
    unknown = [str(name) for name in value if name not in CAUSES] if isinstance(value, dict) else []
    if unknown:
        raise ValueError("; ".join(f"no cause {n!r}: {nearest(n, CAUSES)}" for n in unknown))
    return {} if value == "none" else value


Remedies = Annotated[
    dict[str, Annotated[int, Field(ge=0)]],
    BeforeValidator(_causes),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "none"},
                {
                    "type": "object",
                    "propertyNames": {"enum": list(CAUSES)},
                    "additionalProperties": {"type": "integer", "minimum": 0},
                },
            ]
        }
    ),
]


class StepFile(Frozen):
    """A step as the file writes it."""

    kind: str = Field(description=f"what the step does: see `{PROGRAM} kinds`")
    settings: dict[str, Any] = Field({}, description="the kind's settings")
    resources: dict[str, Any] = Field({}, description="what differs from the kind's resources")
    needs: list[str] = Field([], description="steps that must have succeeded before this one")
    gate: dict[str, Condition] = Field(
        {}, description='conditions on the result: {wer: "<= 0.1"}, {wer: "<= ${other.wer}"}'
    )
    remedies: Remedies | None = Field(
        None,
        description="how often the step heals itself, by cause: {diverged: 1, program_failed: 2}; "
        "what is not named keeps its default; none is never",
    )
    faults: list[Fault] = Field(
        [], description="faults put into a training on purpose, to see what comes of them"
    )


class PipelineFile(Frozen):
    """A pipeline file."""

    name: str = Field("", pattern=NAME, description="name of its runs; the file's name by default")
    description: str = Field("", description="what it is for, in a sentence")
    steps: dict[str, Any] = Field(min_length=1, description="the steps, by name")
