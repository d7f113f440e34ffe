"""Values in settings that have another name now (`Formerly` marks them in the schema)."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from jobs.reading.keys import fields_at
from jobs.reading.paths import Place, replace, walk
from lact_asr.config.base import Formerly


def former(model: type[BaseModel], settings: Any) -> Iterator[tuple[Place, Formerly]]:
    """The places where `settings`, a `model` as a file writes it, use a former name."""
    for place, value in walk(settings):
        field = fields_at(model, place[:-1]).get(str(place[-1])) if place else None
        for mark in field.metadata if field else ():
            if isinstance(mark, Formerly) and value == mark.name:
                yield place, mark


def with_new_names(model: type[BaseModel], settings: Any) -> Any:
    """The same settings in the names of today."""
    for place, mark in list(former(model, settings)):
        settings = replace(settings, place, mark.now)
    return settings
