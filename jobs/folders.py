"""The folders that the environment names."""

import os
from pathlib import Path

from jobs.errors import UserError


def folder_of(variable: str, default: str) -> Path:
    """The folder that a variable names; UserError where its `~` is nobody's home.

    A shell leaves the `~` of `export TRAINYARD_DATA="~/data"` as it is.
    """
    name = os.environ.get(variable) or default
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{variable} is {name!r}: nobody knows whose home that is") from None
