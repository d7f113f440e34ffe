"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PRIVATE = 0o600  # mode of a file that may hold passwords: its owner's alone


def write_atomic(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write `content` so that readers, and crashes, see the old file or the new, never half.

    The file gets the `mode`, as far as the umask allows.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{writer()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with named(path):
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


def writer() -> str:
    """This process, for temporary names: two nodes may hand out the same process id."""
    return f"{os.uname().nodename}.{os.getpid()}"


def write_json(path: Path, value: Any, mode: int = 0o666) -> None:
    """Write `value` as indented JSON, atomically; paths become strings."""
    write_atomic(path, json.dumps(value, indent=1, default=str, ensure_ascii=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text())


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Append one line in a single write, so that lines of two writers do not mix.

    With `sync` it outlives a crash of the machine, which takes 4 ms or more.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_json(path: Path, values: Mapping[str, object], sync: bool = True) -> None:
    """Append one JSON object, with the time (seconds since 1970), as a line."""
    with named(path):
        append_line(path, json.dumps({"time": round(time.time(), 3), **values}, default=str), sync)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError names the file it is about; that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def json_lines(path: Path, tail: int = 0) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file, or those in its last `tail` bytes; none where there is no file.

    A line that a crash has cut is left out.
    """
    try:
        with path.open("rb") as file:
            if tail and file.seek(0, os.SEEK_END) > tail:
                file.seek(-tail, os.SEEK_END)
                file.readline()
            else:
                file.seek(0)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            if line:
                yield json.loads(line)
