"""The lock of a folder: one process at a time, and no judgement about who is dead."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lact_asr.utils.errors import Interrupted
from lact_asr.utils.locks import Busy, exclusive_lock, holder
from tests.conftest import REPOSITORY

HOLD = """
import sys, time, pathlib
from lact_asr.utils.locks import exclusive_lock
with exclusive_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
RACE = """
import os, sys, pathlib, time
from lact_asr.utils.locks import Busy, exclusive_lock
folder = pathlib.Path(sys.argv[1])
while time.time() < float(sys.argv[2]):
    pass
for _ in range(60):
    try:
        with exclusive_lock(folder / "lock", patience=1.0):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            (folder / "inside").unlink()
    except Busy:
        pass
"""
ME = f"process {os.getpid()} on {os.uname().nodename}"


def holding(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre mounted without `-o flock` answers ENOSYS."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_process_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert holder(lock) == ""
    first = holding(lock)
    other = f"process {first.pid} on {os.uname().nodename}"
    assert holder(lock) == other
    with pytest.raises(Busy, match=f"{other}: wait for it"), exclusive_lock(lock, patience=0):
        pass
    first.kill()
    first.wait()


def test_another_holder_is_waited_for_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, asked = tmp_path / "lock", []
    first = holding(lock)

    def never_but_end_the_holder() -> bool:
        asked.append(time.monotonic())
        if asked[-1] > asked[0] + 2:
            first.kill()
        return False

    with exclusive_lock(lock, never_but_end_the_holder):
        assert holder(lock) == ME
    said = capsys.readouterr().out
    assert said == f"{lock} is held by process {first.pid} on {os.uname().nodename}: wait for it\n"
    first.wait()


def test_who_waits_for_a_lock_can_be_interrupted(tmp_path: Path) -> None:
    first = holding(tmp_path / "lock")
    with pytest.raises(Interrupted), exclusive_lock(tmp_path / "lock", lambda: True):
        pass
    first.kill()
    first.wait()


def test_a_killed_holder_leaves_the_lock_free_whatever_the_file_says(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = holding(lock)
    first.kill()
    first.wait()
    assert holder(lock) == ""
    lock.write_text("")  # what a full disk leaves
    with exclusive_lock(lock):
        assert holder(lock) == ME


def test_the_lock_of_a_dead_holder_is_never_given_to_two(tmp_path: Path) -> None:
    for _ in range(3):
        dead = holding(tmp_path / "lock")
        dead.kill()
        dead.wait()
        start = str(time.time() + 0.7)
        command = [sys.executable, "-c", RACE, str(tmp_path), start]
        both = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(3)]
        assert [process.wait() for process in both] == [0, 0, 0]


@pytest.mark.usefixtures("no_flock")
def test_a_file_system_without_flock_gets_a_file_that_only_one_can_create(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive_lock(lock):
        assert holder(lock) == ME
        advice = r"delete .*lock\.owner if that process is dead \(this file system has no flock"
        with pytest.raises(Busy, match=advice), exclusive_lock(lock, patience=0):
            pass
    assert holder(lock) == ""


@pytest.mark.usefixtures("no_flock")
def test_without_flock_another_holder_is_waited_for_too(tmp_path: Path) -> None:
    lock, asked = tmp_path / "lock", []
    lock.with_name("lock.owner").write_text("process 17 on login1")

    def never_but_remove_the_file() -> bool:
        asked.append(lock.with_name("lock.owner").unlink() if not asked else None)
        return False

    with exclusive_lock(lock, never_but_remove_the_file):
        assert holder(lock) == ME
    assert len(asked) == 1 and not lock.with_name("lock.owner").exists()
