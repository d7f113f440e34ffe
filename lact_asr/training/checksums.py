"""Whether a checkpoint is as it was written: its state.json holds a checksum of each other file.

A weight that is off by a power of two loads without a word, and so does the half of a file that
somebody has copied over the other. state.json holds one of itself too: what else stands in it.
Checkpoints from before there were checksums hold none, and nothing but numbers and words. Who has
changed a file on purpose removes them: `checksums` in state.json.

sha256, because processors have it: 256 MB took 1.6 s on a busy core, blake2b 2.6 s.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lact_asr.utils.errors import Damaged, Unreadable
from lact_asr.utils.files import read_object

STATE = "state.json"
_SUMS = "checksums"
_PIECE = 2**20  # bytes read at a time


def seal(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What state.json is to say of the files in a folder: facts, and checksums of all."""
    sums = {path.name: _of_file(path) for path in sorted(folder.iterdir()) if path.name != STATE}
    return {**facts, _SUMS: {**sums, STATE: _of_json({**facts, _SUMS: sums})}}


def facts(path: Path) -> dict[str, Any]:
    """What the state.json of a checkpoint says beside checksums; Damaged where it is not whole."""
    return _read(path)[0]


def require_same(path: Path, *files: str) -> bool:
    """Damaged where one of the files of a checkpoint, or of all where none is named, has changed.

    False where there are no checksums: nobody knows.
    """
    _, sums = _read(path)
    for name in files or sums:
        if name not in sums and sums:
            raise Damaged(path / name, "no checksum tells whether it is as it was written")
        if name in sums and _present(path / name) != sums[name]:
            raise Damaged(path / name, "it is not as it was written: its checksum is another")
    return bool(sums)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Facts and checksums of a checkpoint; Damaged where they are not what was written."""
    file = path / STATE
    try:
        found = read_object(file)
    except Unreadable as error:
        raise Damaged(file, error.why) from None
    if found is None:
        raise Damaged(file, "it is missing")
    sums = found.pop(_SUMS, {})
    own = sums.pop(STATE, None) if isinstance(sums, dict) else None
    before = not sums and not any(isinstance(value, (dict, list)) for value in found.values())
    if not before and own != _of_json({**found, _SUMS: sums}):
        raise Damaged(file, "it is not as it was written: its checksum is another")
    return found, sums


def _present(file: Path) -> str:
    """The checksum of a file that should be there."""
    try:
        return _of_file(file)
    except FileNotFoundError:
        raise Damaged(file, "it is missing") from None
    except OSError as error:
        raise Damaged(file, f"it cannot be read: {error.strerror}") from None


def _of_file(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as opened:  # hashlib.file_digest is there from Python 3.11 on
        while piece := opened.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _of_json(value: Any) -> str:
    """The same for the value that is written and the one that is read."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
