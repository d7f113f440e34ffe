"""From evidence to a cause (`jobs.causes`): one word and one sentence.

There are two kinds of evidence: the exception that ended a process, and, where a process could say
nothing any more, how it ended and the last lines of its log.
"""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from jobs.causes import CAUSES
from jobs.errors import UserError
from jobs.fence import Attempt
from lact_asr.utils.errors import DataError, Failed

_ADVICE = {
    errno.ENOSPC: "make room, then `resume`",
    errno.EDQUOT: "your quota is used up: make room, then `resume`",
    errno.EROFS: "the node has mounted it for reading only",
    errno.EACCES: "the job runs as you: it needs the permission to do this",
    errno.EPERM: "the job runs as you: it needs the permission to do this",
    errno.EISDIR: "a folder lies where a file belongs: move it away",
    errno.ENOTDIR: "a file lies where a folder belongs: move it away",
    errno.EIO: "its disk or its server has failed: tell your administrator",
    errno.ESTALE: "its file server has lost it: `resume` once the server is back",
}
_OF_DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "disk_full"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "permission"),
}
_FORMER = {  # in failure.json of runs from before there was a list of causes
    "divergence": "diverged",
    "data": "bad_data",
    "disk": "disk_full",
    "gate": "gate_missed",
    "overfit": "gate_missed",
    "command": "program_failed",
    "needs": "needs_missing",
    "requeue": "not_requeued",
    "out_of_memory": "out_of_memory_gpu",
}
# What the libraries, and Slurm's own daemon, leave in a log. The first that fits counts.
_WORDS = (
    (
        "out_of_memory_host",
        r"oom.kill|[Oo]ut [Oo]f [Mm]emory handler|exceeded memory limit|"
        r"DefaultCPUAllocator: (can't allocate|not enough) memory",
    ),
    (
        "out_of_memory_gpu",
        r"CUDA (error: )?out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED",
    ),
    ("slurm_unreachable", r"srun: error: .*(Unable to contact slurm controller|Socket timed out)"),
    ("port_in_use", r"EADDRINUSE|[Aa]ddress already in use"),
    (
        "collective_timeout",
        r"Watchdog caught collective operation timeout|[Tt]imed out waiting .{0,40}(recv|send)|"
        r"DistStoreError",
    ),
    (
        "killed",
        r"srun: error: .*tasks? [0-9,-]+: Killed|"
        r"DataLoader worker .{1,40} killed by signal: (Killed|Terminated)",
    ),
    (
        "collective_timeout",
        r"Connection (closed|reset) by peer|ncclRemoteError|NCCL communicator was aborted",
    ),
    ("crashed", r"DataLoader worker .{1,40} (killed by signal|exited unexpectedly)"),
    ("node_failed", r"CUDA error: uncorrectable ECC"),
    ("disk_full", r"No space left on device|Disk quota exceeded"),
    ("import_error", r"^(ModuleNotFound|Import)Error: "),
    ("missing_file", r"execve\(\): .*No such file or directory"),
)
# What srun says in the moment between the end of a job, a scancel's, and that of its batch script.
_JOB_ENDED = r"srun: error: .*\bjob {}\b.*(has expired|already completing or completed)"
# A rank that fails in one of these ways may have died of another one's death.
SECONDARY = ("collective_timeout", "killed")


def cause_of(error: BaseException) -> str:
    """The cause that an exception stands for."""
    if isinstance(error, Failed):
        return error.cause
    if _out_of_memory(error):
        return "out_of_memory_gpu" if not isinstance(error, MemoryError) else "out_of_memory_host"
    absent = any(isinstance(each, FileNotFoundError) for each in _chain(error))
    if absent and isinstance(error, DataError):
        return "missing_file"
    number = _disk_trouble(error)[0]
    if isinstance(error, DataError) and number in (0, errno.EISDIR, errno.ENOTDIR):
        return "bad_data"  # a manifest that is a folder is another path than was meant
    if number:
        return _OF_DISK.get(number, "disk_error")
    if isinstance(error, UserError):
        return "settings"
    if isinstance(error, FileNotFoundError):
        return "missing_file"
    if isinstance(error, ImportError):
        return "import_error"
    return _by_words(str(error)) or "error"


def cause_of_end(status: int, log: str) -> tuple[str, str]:
    """Cause and sentence of processes that ended without a word of ours.

    `status` is what srun or a shell makes of it: 128 + 9 for SIGKILL. `log` is the end of the log.
    """
    number = status - 128 if status > 128 else -status
    name = signal.Signals(number).name if number in set(signal.Signals) else f"status {status}"
    if cause := _by_words(log):
        return cause, f"{CAUSES[cause].meaning} ({name})"
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        return "killed", f"{CAUSES['killed'].meaning} ({name})"
    if number in set(signal.Signals):
        return "crashed", f"{CAUSES['crashed'].meaning} ({name})"
    return "error", f"it ended with {name}, and without a word of its own"


def job_had_ended(job: str, log: str) -> bool:
    """Whether srun found the job ended: its step never began, and Slurm knows who ended the job."""
    return re.search(_JOB_ENDED.format(re.escape(job)), log) is not None


def present_name(cause: str) -> str:
    """A cause of failure.json in today's words; one from elsewhere is an error without a name."""
    cause = _FORMER.get(cause, cause)
    return cause if cause in CAUSES else "error"


def failure_record(
    attempt: Attempt, rank: int | None, cause: str, message: str, traceback: str = ""
) -> dict[str, Any]:
    """What failure.json says; `rank` is None where no process could say it."""
    return {
        "cause": cause,
        "message": message,
        "traceback": traceback,
        "host": os.uname().nodename,
        "rank": rank,
        "job": attempt.job,
        "restart": attempt.restart,
        "time": time.time(),
    }


def _by_words(said: str) -> str:
    """The cause that the words of a library stand for; empty where they are of none."""
    return next((cause for cause, pattern in _WORDS if re.search(pattern, said, re.MULTILINE)), "")


def _out_of_memory(error: BaseException) -> bool:
    """Of the machine, or of a GPU: who ran out of that has imported torch, which takes 1 s."""
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )


def sentence(error: BaseException) -> str:
    """What an exception says, with what to do where that is known."""
    said = str(error).strip() or type(error).__name__
    if isinstance(error, (Failed, DataError, UserError)):
        return said
    number, told = _disk_trouble(error)
    if number:
        return f"{told}: {_ADVICE[number]}"
    cause = cause_of(error)
    return said if cause == "error" else f"{CAUSES[cause].meaning}: {said.splitlines()[0]}"


def _disk_trouble(error: BaseException) -> tuple[int, str]:
    """The number and the words of the trouble with a file behind an exception; 0 where none is.

    torch.save hides it behind a RuntimeError, safetensors in the words "(os error 28)".
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _ADVICE:
            where = f"{each.filename}: " if each.filename else ""
            return each.errno, f"{where}{each.strerror}"
        told = re.search(r"\(os error (\d+)\)", str(each))
        if told and int(told[1]) in _ADVICE:
            return int(told[1]), str(each)
    return 0, ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
