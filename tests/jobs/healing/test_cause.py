"""From evidence to a cause: exceptions, silent ends, the words of libraries and of Slurm."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from jobs.causes import CAUSES
from jobs.errors import UserError
from jobs.healing.cause import cause_of, cause_of_end, sentence
from lact_asr.data.manifest import read_manifest
from lact_asr.utils.errors import DataError, Failed


def no_space() -> RuntimeError:
    """torch.save on a full disk: its own exception around the one that says why."""
    error = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "trainer.pt")
    return error


def of(number: int, error: Exception) -> Exception:
    """An error that was made of one of the file system's."""
    error.__cause__ = OSError(number, os.strerror(number), "x")
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "out_of_memory_gpu"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory_gpu"),
        (MemoryError(), "out_of_memory_host"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 8 bytes. Error code 12"),
            "out_of_memory_host",
        ),
        (Failed("diverged", "20 steps in a row"), "diverged"),
        (DataError("the manifest has no utterances"), "bad_data"),
        (no_space(), "disk_full"),
        (of(errno.ENOSPC, DataError("cannot write x.part")), "disk_full"),
        (of(errno.EACCES, DataError("cannot read the table x")), "permission"),
        (of(errno.EIO, DataError("cannot read the manifest x")), "disk_error"),
        (of(errno.EISDIR, DataError("cannot read the manifest x")), "bad_data"),
        (of(errno.ENOENT, DataError("cannot read the manifest x")), "missing_file"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "disk_full"),
        (OSError(errno.ESTALE, "Stale file handle", "x"), "disk_error"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "permission"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "missing_file"),
        (ModuleNotFoundError("No module named 'torch'"), "import_error"),
        (UserError("the settings do not hold at run time"), "settings"),
        (
            RuntimeError("The server socket has failed to listen on any local network address. "
            "port: 15201, useIpv6: false, code: -98, name: EADDRINUSE, message: address already "
            "in use"),
            "port_in_use",
        ),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out "
            "waiting 1800000ms for recv operation to complete"),
            "collective_timeout",
        ),
        (RuntimeError("Connection closed by peer [127.0.0.1]:31337"), "collective_timeout"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "killed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "crashed"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "crashed"),
        (ZeroDivisionError("division by zero"), "error"),
    ],
)  # fmt: skip
def test_an_exception_has_one_cause(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause
    assert cause in CAUSES


OOM_KILL = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks..."
SRUN = "srun: error: n1: task 0: Killed\nsrun: Terminating StepId=17.0"
TIMEOUT = "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, ..."


@pytest.mark.parametrize(
    ("status", "log", "cause"),
    [
        (128 + signal.SIGKILL, "", "killed"),
        (-signal.SIGKILL, "", "killed"),
        (1, "srun: error: Unable to create step for job 7: Socket timed out", "slurm_unreachable"),
        (128 + signal.SIGKILL, f"{SRUN}\n{OOM_KILL}", "out_of_memory_host"),
        (128 + signal.SIGKILL, f"Connection closed by peer\n{SRUN}", "killed"),
        (128 + signal.SIGSEGV, "Fatal Python error: Segmentation fault", "crashed"),
        (-signal.SIGABRT, TIMEOUT, "collective_timeout"),
        (-signal.SIGABRT, "terminate called without an active exception", "crashed"),
        (1, "Traceback ...\nModuleNotFoundError: No module named 'jobs'", "import_error"),
        (127, "srun: error: execve(): python9: No such file or directory", "missing_file"),
        (1, "what nobody knows", "error"),
    ],
)
def test_an_end_without_a_word_of_ours_has_a_cause(status: int, log: str, cause: str) -> None:
    found, message = cause_of_end(status, log)
    assert found == cause
    assert message


def test_a_full_disk_is_told_by_the_file_and_what_to_do() -> None:
    assert sentence(no_space()) == "trainer.pt: No space left on device: make room, then `resume`"
    assert sentence(Failed("diverged", "it is lost")) == "it is lost"


def test_every_cause_says_what_the_run_does_and_what_is_left_for_a_person() -> None:
    for name, about in CAUSES.items():
        assert name.isidentifier() and about.meaning and about.itself and about.person


def test_a_manifest_that_is_gone_is_a_missing_file_and_one_that_is_wrong_is_bad_data(
    tmp_path: Path,
) -> None:
    manifest = tmp_path / "m.jsonl"
    for text, cause in ((None, "missing_file"), ("{}", "bad_data")):
        if text is not None:
            manifest.write_text(text)
        with pytest.raises(DataError) as caught:
            read_manifest(manifest)
        assert cause_of(caught.value) == cause
