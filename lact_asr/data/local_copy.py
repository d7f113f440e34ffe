"""Audio, and video beside it, copied to the node's own disk before training: a shared file system
is read once, not once an epoch, and thousands of small opens there cost more than their bytes.

A copy lies under its source's whole path, is renamed into place when complete, and has its source's
size and time: what a killed job has copied is not copied again. No torch here.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lact_asr.data.manifest import Utterance
from lact_asr.utils.errors import Failed
from lact_asr.utils.locks import exclusive_lock
from lact_asr.utils.progress import Progress, size

AT_ONCE = 16  # copies: a shared file system answers slowly and in parallel
SPARE = 1 << 30  # bytes left free on the node's disk


def scratch() -> Path:
    """The node's own folder for this user: in $SLURM_TMPDIR, else in $TMPDIR, else in /tmp."""
    return Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()) / f"staged-{os.getuid()}"


def stage_files(utterances: Sequence[Utterance], folder: Path) -> list[Utterance]:
    """The utterances with their files in `folder`, each file copied if it is not there yet.

    Processes of one node take turns, so the first copies for all. A file that cannot be read keeps
    its place: training names it. Failed if the disk has too little room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for each in utterances for path in (each.audio, each.video) if path]
    sources = list(dict.fromkeys(path.absolute() for path in files))
    copies = [_place(source, folder) for source in sources]
    with exclusive_lock(folder / "lock"), ThreadPoolExecutor(AT_ONCE) as pool:
        costs = list(pool.map(_missing, sources, copies))
        _check_room(folder, sum(costs))
        wanted = [pair for *pair, cost in zip(sources, copies, costs, strict=True) if cost]
        with Progress(f"staging to {folder}", sum(costs), "B") as progress:
            for cost in pool.map(lambda pair: _copy_file(*pair), wanted):
                progress.advance(cost)
    return [_with_copies(each, folder) for each in utterances]


def _place(source: Path, folder: Path) -> Path:
    return folder / source.relative_to(source.anchor)


def _missing(source: Path, copy: Path) -> int:
    """Bytes to copy; 0 if the copy is there, or the source is not."""
    try:
        original = source.stat()
    except OSError:
        return 0
    try:
        there = copy.stat()
    except FileNotFoundError:
        return original.st_size
    same = (there.st_size, there.st_mtime_ns) == (original.st_size, original.st_mtime_ns)
    return 0 if same else original.st_size


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free - SPARE:
        raise Failed(
            "disk_full",
            f"staging needs {size(needed)} in {folder}, which has {size(free)} free (and "
            f"{size(SPARE)} are left alone); write stage: false, or set SLURM_TMPDIR or TMPDIR to "
            "a larger disk of the node",
        )


def _copy_file(source: Path, copy: Path) -> int:
    """Copy one file, under another name until it is whole; its bytes, 0 if it cannot be read."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f"{copy.name}.part")
    if not os.access(source, os.R_OK):
        return 0
    shutil.copy2(source, part)
    part.replace(copy)
    return copy.stat().st_size


def _with_copies(utterance: Utterance, folder: Path) -> Utterance:
    video = utterance.video and _copy(utterance.video, folder)
    return replace(utterance, audio=_copy(utterance.audio, folder), video=video)


def _copy(file: Path, folder: Path) -> Path:
    """Where the file is now: in the folder, or where it was."""
    copy = _place(file.absolute(), folder)
    return copy if copy.exists() else file
