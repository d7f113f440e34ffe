"""Files that are whole or absent: written under a temporary name, synced, then renamed.

What is read may have been cut, emptied or replaced by somebody: that is an `Unreadable`.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lact_asr.utils.errors import Unreadable

PRIVATE = 0o600  # mode of a file that may hold passwords: its owner's alone
_LARGEST = 1e15  # no amount, time or loss of ours is larger; a comparison with NaN is false


def write_atomic(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write `content` so that readers, and crashes, see the old file or the new, never half.

    The file gets the `mode`, as far as the umask allows.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{writer()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with naming_file(path):
        try:
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()  # half a file takes room on a full disk
            raise


def is_there(path: Path) -> bool:
    """Whether there is something by that name; not where a name has 300 letters, or lies in a
    folder that is closed to us, for which `Path.exists` raises an OSError.
    """
    try:
        return path.exists()
    except OSError:
        return False


def writer() -> str:
    """This process, for temporary names: two nodes may hand out the same process id."""
    return f"{os.uname().nodename}.{os.getpid()}"


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Write `value` as indented JSON, atomically; paths become strings."""
    write_atomic(path, json.dumps(value, indent=1, default=str, ensure_ascii=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text())


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file, Unreadable for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(path, error.strerror) from None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable(path, "it is not JSON" if data.strip() else "it is empty") from None
    if not isinstance(value, dict):
        raise Unreadable(path, "it is not a JSON object")
    return value


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Append one line in a single write, so that lines of two writers do not mix.

    A line that a crash has cut stays alone. With `sync` the new one outlives a crash of the
    machine, which takes 4 ms or more.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, _cut(descriptor) + line.encode() + b"\n")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut(descriptor: int) -> bytes:
    """The newline that the last line lacks."""
    size = os.fstat(descriptor).st_size
    return b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""


def append_json(path: Path, values: Mapping[str, object], sync: bool = True) -> None:
    """Append one JSON object, with the time (seconds since 1970), as a line."""
    with naming_file(path):
        append_line(path, json.dumps({"time": round(time.time(), 3), **values}, default=str), sync)


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """An OSError names the file it is about; that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def json_lines(path: Path, tail: int = 0) -> Iterator[dict[str, Any]]:
    """The JSON objects in the lines of a file, or of its last `tail` bytes; none without a file.

    What is no object, such as a line that a crash has cut, is left out. Unreadable where the file
    cannot be read at all.
    """
    try:
        data = _tail(path, tail) if tail else path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unreadable(path, error.strerror) from None
    for line in filter(None, data.split(b"\n")):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _tail(path: Path, size: int) -> bytes:
    """The whole lines in the last `size` bytes of a file."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) > size:
            file.seek(-size, os.SEEK_END)
            file.readline()
        else:
            file.seek(0)
        return file.read()


def number(value: object) -> float | None:
    """A number from a JSON file that one can reckon with; None for null, NaN, text and the like."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < _LARGEST else None
