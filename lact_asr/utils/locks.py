"""One process at a time works on a run, or on a folder that several pipelines share.

The lock is an flock: the kernel gives it back when its holder dies, on whatever host, so that
nobody has to judge whether a holder is dead. The file stays; what it says is for people. A file
system without flock (Lustre mounted without `-o flock`) gets a file that only one can create, and
that a person removes after a crash.
"""

import contextlib
import errno
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lact_asr.utils.errors import Interrupted

_TOLD_AFTER = 1.0  # seconds: `holder` takes a lock for a moment to see whether it is free
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Busy(Exception):
    """Another process, `owner`, holds a lock; `advice` says what to do."""

    def __init__(self, owner: str, advice: str) -> None:
        super().__init__(f"{owner}: {advice}")
        self.owner, self.advice = owner, advice


def never() -> bool:
    """A `should_stop` for callers whom nobody interrupts."""
    return False


def no_fence() -> None:
    """A `fence` for callers beside whom nobody writes."""


@contextlib.contextmanager
def exclusive_lock(
    path: Path, should_stop: Callable[[], bool] = never, patience: float = math.inf
) -> Iterator[None]:
    """Hold the lock file `path`; another holder is waited for, `patience` seconds at most.

    Busy where that was not enough, Interrupted where `should_stop()` came true meanwhile.
    """
    began, told = time.monotonic(), False
    with contextlib.ExitStack() as held:
        while True:
            try:
                _take(path, held)
                break
            except Busy as busy:
                waited = time.monotonic() - began
                if waited >= patience:
                    raise
                if waited > _TOLD_AFTER and not told:
                    print(f"{path} is held by {busy}", flush=True)
                    told = True
                if should_stop():
                    raise Interrupted from None
                time.sleep(0.05)
        yield


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


def _take(path: Path, held: contextlib.ExitStack) -> None:
    """Take the lock, which `held` gives back; Busy where another process has it."""
    with contextlib.ExitStack() as taken:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        taken.callback(os.close, descriptor)  # gives an flock back
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(_owner(path), "wait for it") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            _create(_substitute(path))
            taken.callback(_substitute(path).unlink)
        else:
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _me().encode(), 0)
        held.push(taken.pop_all())


def _create(substitute: Path) -> None:
    """Create the file that only one process can create; Busy where it is there."""
    try:
        descriptor = os.open(substitute, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        advice = (
            f"wait for it, or delete {substitute} if that process is dead (this file system has "
            "no flock, so nothing else can tell)"
        )
        raise Busy(_owner(substitute), advice) from None
    with os.fdopen(descriptor, "w") as file, contextlib.suppress(OSError):
        file.write(_me())


def _substitute(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _me() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"
