"""What every block of settings is made of. No torch."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


# Marks a tuple inside a block that a `before` validator looks at. What that hands on is Python's,
# and there pydantic (2.14) takes no list for a tuple: a pipeline file, read strictly, could not
# write one.
Listed = BeforeValidator(_listed)


class Frozen(BaseModel):
    """A settings block: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_Block = TypeVar("_Block", bound=Frozen)


def changed(block: _Block, changes: Mapping[str, object]) -> _Block:
    """A block with some settings changed, checked as a whole and as strictly as a pipeline file's
    own: `layers: true` is no number.
    """
    wanted = {**block.model_dump(mode="json"), **changes}
    return type(block).model_validate_json(json.dumps(wanted), strict=True)


class Formerly:
    """A mark on a setting whose value had another name: the old name is read as the new one.

    Runs and checkpoints keep the names of their day. `launch.py check` and `run` say so once for
    each place in a pipeline file.
    """

    def __init__(self, name: str, now: str) -> None:
        self.name, self.now = name, now

    def read(self, value: object) -> object:
        """The value under the name that it has now."""
        return self.now if value == self.name else value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Read the value before its type is checked."""
        return core_schema.no_info_before_validator_function(self.read, handler(source))
