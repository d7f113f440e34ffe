"""The lock of a run: one launcher at a time, and no judgement about who is dead."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import locks
from jobs.errors import UserError
from jobs.store import user
from tests.conftest import REPOSITORY
from tests.jobs.test_status import make_run

HOLD = """
import sys, time, pathlib
from jobs import locks
with locks.exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
RACE = """
import os, sys, pathlib, time
from jobs import locks
from jobs.errors import UserError
from jobs.store import user
folder = pathlib.Path(sys.argv[1])
while time.time() < float(sys.argv[2]):
    pass
for _ in range(60):
    try:
        with locks.exclusive(folder / "lock"):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            (folder / "inside").unlink()
    except UserError:
        pass
"""


def holding(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert locks.holder(lock) == ""
    first = holding(lock)
    me = f"process {first.pid} on {os.uname().nodename}"
    assert locks.holder(lock) == me
    with (
        pytest.raises(UserError, match=f"is being submitted or cancelled by {me}: wait for it"),
        locks.exclusive(lock),
    ):
        pass
    first.kill()
    first.wait()


def test_a_killed_holder_leaves_the_lock_free_whatever_the_file_says(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = holding(lock)
    first.kill()
    first.wait()
    assert locks.holder(lock) == ""
    lock.write_text("")  # what a full disk leaves
    with locks.exclusive(lock):
        assert locks.holder(lock) == f"process {os.getpid()} on {os.uname().nodename}"


def test_the_lock_of_a_dead_holder_is_never_given_to_two(tmp_path: Path) -> None:
    import time

    for _ in range(3):
        dead = holding(tmp_path / "lock")
        dead.kill()
        dead.wait()
        start = str(time.time() + 0.7)
        command = [sys.executable, "-c", RACE, str(tmp_path), start]
        both = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(3)]
        assert [process.wait() for process in both] == [0, 0, 0]


def test_a_file_system_without_flock_gets_a_file_that_only_one_can_create(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre mounted without `-o flock` answers ENOSYS."""

    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    lock = tmp_path / "lock"
    with locks.exclusive(lock):
        assert locks.holder(lock) == f"process {os.getpid()} on {os.uname().nodename}"
        advice = r"delete .*lock\.owner if that process is dead \(this file system has no flock"
        with pytest.raises(UserError, match=advice), locks.exclusive(lock):
            pass
    assert locks.holder(lock) == ""


def test_a_lock_that_cannot_be_taken_is_a_sentence_and_another_users_is_not_tried(
    tmp_path: Path,
) -> None:
    """In a shared folder the lock of another user's run cannot even be opened."""
    run = make_run(tmp_path)
    run.write_info({**run.info(), "user": user()})
    (run.path / "lock").mkdir()  # not even root can write into it
    with pytest.raises(UserError, match="lock cannot be written: Is a directory"), run.lock():
        pass
    run.write_info({**run.info(), "user": "somebody"})
    with pytest.raises(UserError, match="belongs to somebody, and you are "), run.lock():
        pass
