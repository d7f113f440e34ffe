"""What a failure is called, and how it is told: one word and one sentence for any exception."""

import errno
import re
import sys
from collections.abc import Iterator

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
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def failure_class(error: BaseException) -> str:
    """One word for an exception: what a remedy, or a person, answers to."""
    if isinstance(error, Failed):
        return error.failure_class
    if _out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, DataError):
        return "data"
    if number := _disk_trouble(error)[0]:
        return "permission" if number in _FORBIDDEN else "disk"
    return "error"


def _out_of_memory(error: BaseException) -> bool:
    """Of the machine, or of a GPU: who ran out of that has imported torch, which takes 1 s."""
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )


def sentence(error: BaseException) -> str:
    """What an exception says, with what to do where that is known."""
    said = str(error).strip() or type(error).__name__
    if failure_class(error) not in ("disk", "permission"):
        return said
    number, said = _disk_trouble(error)
    return f"{said}: {_ADVICE[number]}"


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
