"""What lies in a folder of speech, and what only seems to."""

import os
from collections.abc import Iterator
from pathlib import Path

from lact_asr.utils.errors import DataError


def walk_visible(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below this one, and this one, with the names of its files, sorted.

    What begins with a dot is passed over: a Mac leaves a ._84-121123-0000.flac of its own beside
    each file that it has copied, and a file server old versions in .snapshot. DataError for a
    folder that cannot be read.
    """
    for directory, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(directory), sorted(name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot read this folder: {error.strerror}") from error
