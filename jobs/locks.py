"""One launcher at a time works on a run.

The lock is an flock: the kernel gives it back when its holder dies, on whatever host, so that
nobody has to judge whether a holder is dead. The file stays; what it says is for people. A file
system without flock (Lustre mounted without `-o flock`) gets a file that only one can create, and
that a person removes after a crash.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import UserError

PATIENCE = 1.0  # seconds: `holder` takes the lock for a moment to see whether it is free
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def exclusive(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock file `path`; UserError where another process holds it for longer than so many
    seconds, or nobody can.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    try:
        with _hold_descriptor(path, descriptor, patience):
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold a lock file, for which others are waited for; where there is no flock for nobody."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
        yield


def holder(path: Path) -> str:
    """`process 17 on login1` where somebody holds the lock, otherwise empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # not there, or not ours to open
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(path)
    except OSError:
        return _owner(_substitute(path)) if _substitute(path).exists() else ""
    finally:
        os.close(descriptor)
    return ""


@contextlib.contextmanager
def _hold_descriptor(path: Path, descriptor: int, patience: float) -> Iterator[None]:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(_busy(path, _owner(path), "wait for it")) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            with _hold_created_file(path, end):
                yield
            return
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _me().encode(), 0)
    yield  # closing the descriptor gives the lock back


@contextlib.contextmanager
def _hold_created_file(path: Path, end: float) -> Iterator[None]:
    """Hold a file that only one process can create."""
    substitute = _substitute(path)
    descriptor = _create(path, substitute, end)
    try:
        os.write(descriptor, _me().encode())
        os.close(descriptor)
        yield
    finally:
        substitute.unlink()


def _create(path: Path, substitute: Path, end: float) -> int:
    """The descriptor of a new file; UserError where it is there until the time `end`."""
    while True:
        try:
            return os.open(substitute, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            if time.monotonic() <= end:
                time.sleep(0.05)
                continue
            advice = (
                f"wait for it, or delete {substitute} if that process is dead (this file system "
                "has no flock, so nothing else can tell)"
            )
            raise UserError(_busy(path, _owner(substitute), advice)) from None


def _substitute(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _me() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"


def _busy(path: Path, owner: str, advice: str) -> str:
    return f"{path.parent.name} is being submitted or cancelled by {owner}: {advice}"
