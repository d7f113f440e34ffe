"""From nothing to a whole corpus folder: room, archive, unpacking, count, rename.

A subset is unpacked into a temporary folder on the same file system, counted against the known
number of utterances, given its marker `.complete`, and only then renamed to its place. So
LibriSpeech/<subset> is whole or absent at any moment, and whether it is up to date is read from the
marker alone.
"""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from lact_asr.data.audio import is_recording
from lact_asr.data.corpora import Subset
from lact_asr.data.disk_space import MARKER, archive_of, bytes_needed, folder_of, is_complete
from lact_asr.data.download import Download, fetch
from lact_asr.utils.errors import DataError, Failed, Interrupted
from lact_asr.utils.files import write_json
from lact_asr.utils.locks import exclusive_lock, never
from lact_asr.utils.progress import Progress, size


def download_subset(
    subset: Subset,
    root: Path,
    mirror: str,
    tries: int,
    should_stop: Callable[[], bool] = never,
) -> Path:
    """The folder `root`/LibriSpeech/<subset>, downloaded and unpacked if it is not there yet.

    Raises DataError, or Interrupted when interrupted: the next call goes on from there.
    """
    folder = folder_of(subset, root)
    root.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(root / f".{subset.name}.lock", should_stop):
        if is_complete(folder, subset):
            return folder
        if folder.exists():
            raise DataError(
                f"{folder} exists but was not made by this download (no {MARKER} in it)."
                " Move it away, or read it as it is with `source: folder`."
            )
        url = subset.url(mirror)
        archive = archive_of(subset, root)
        download = Download(
            url, archive, subset.checksum, subset.size, tries, should_stop=should_stop
        )
        check_room(root, subset, download.arrived)
        fetch(download)
        unpack(archive, folder, subset, should_stop)
        archive.unlink()
    return folder


def check_room(root: Path, subset: Subset, arrived: int) -> None:
    """Failed if the rest of the archive and the unpacked corpus do not fit under `root`."""
    left, unpacked = bytes_needed(subset, arrived)
    free = shutil.disk_usage(root).free
    if left + unpacked > free:
        raise Failed(
            "disk_full",
            f"{subset.name} needs {size(left + unpacked)} free in {root}"
            f" (archive {size(left)}, unpacked {size(unpacked)}), there are {size(free)}."
            " Make room or set `root` to another disk.",
        )


def unpack(
    archive: Path, folder: Path, subset: Subset, should_stop: Callable[[], bool] = never
) -> None:
    """The archive as `folder`, whole and counted; on any failure nothing but the archive stays."""
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            "this Python cannot unpack archives safely (no tarfile.data_filter):"
            " use Python 3.10.12, 3.11.4 or newer"
        )
    temporary = folder.parent / f".{subset.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed job; the lock is ours
    temporary.mkdir(parents=True)
    try:
        _extract(archive, temporary, should_stop)
        unpacked = temporary / "LibriSpeech" / subset.name
        _count(unpacked, archive, subset)
        write_json(
            unpacked / MARKER, {"checksum": subset.checksum, "utterances": subset.utterances}
        )
        for note in sorted((temporary / "LibriSpeech").glob("*.TXT")):  # licence, speakers, books
            note.replace(folder.parent / note.name)
        unpacked.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path, should_stop: Callable[[], bool]) -> None:
    """Every member below `folder`: the data filter refuses what would land elsewhere."""
    try:
        with (
            archive.open("rb") as file,
            Progress(f"unpacking {archive.name}", archive.stat().st_size, "B") as progress,
            tarfile.open(fileobj=file, mode="r:gz") as tar,
        ):
            for member in tar:
                if should_stop():
                    raise Interrupted(archive.stat().st_size)
                tar.extract(member, folder, filter="data")
                progress.advance(file.tell() - progress.done)
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: refused to unpack it: {error}") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: damaged archive ({error}); remove it, start again") from error
    except OSError as error:
        raise DataError(f"cannot unpack {archive} in {folder}: {error.strerror}") from error


def _count(folder: Path, archive: Path, subset: Subset) -> None:
    """DataError unless transcripts and audio files are as many as the corpus is known to have."""
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.trans.txt")
    )
    audio = sum(map(is_recording, folder.rglob("*")))
    if not lines == audio == subset.utterances:
        raise DataError(
            f"{archive}: {lines:,} transcripts and {audio:,} audio files in LibriSpeech/"
            f"{subset.name}, but the subset has {subset.utterances:,} utterances; nothing was kept"
        )
