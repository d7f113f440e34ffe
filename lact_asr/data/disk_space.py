"""How much disk a corpus takes while it comes: an archive, beside it what is unpacked. No torch.

Subsets come one after the other, and an archive goes when it is unpacked: the peak of all 961 h of
LibriSpeech is 95 GB, during the last and largest archive.
"""

from collections.abc import Iterable
from pathlib import Path

from lact_asr.data.corpora import Subset
from lact_asr.utils.files import read_json

MARKER = ".complete"
_SLACK = 1.05  # unpacked bytes per archive byte: FLAC hardly compresses, small files waste blocks


def archive_of(subset: Subset, root: Path) -> Path:
    """Where the archive of a subset is put."""
    return root / f"{subset.name}.tar.gz"


def folder_of(subset: Subset, root: Path) -> Path:
    """Where a subset is unpacked."""
    return root / "LibriSpeech" / subset.name


def part_of(archive: Path) -> Path:
    """Where the bytes of an archive wait until its checksum is right."""
    return archive.with_name(archive.name + ".part")


def bytes_on_disk(archive: Path) -> int:
    """Bytes of an archive on disk so far."""
    for path in (archive, part_of(archive)):
        if path.exists():
            return path.stat().st_size
    return 0


def is_complete(folder: Path, subset: Subset) -> bool:
    """Whether this very archive was unpacked here, to its last utterance."""
    try:
        return bool(read_json(folder / MARKER)["checksum"] == subset.checksum)
    except (FileNotFoundError, NotADirectoryError):
        return False


def bytes_needed(subset: Subset, bytes_on_disk: int) -> tuple[int, int]:
    """Bytes still to come of an archive, and bytes that it will have unpacked."""
    return max(0, subset.size - bytes_on_disk), int(subset.size * _SLACK)


def peak(subsets: Iterable[Subset], root: Path) -> int:
    """Bytes that must be free under `root` for subsets that come in this order."""
    taken = highest = 0
    for subset in subsets:
        if not is_complete(folder_of(subset, root), subset):
            left, unpacked = bytes_needed(subset, bytes_on_disk(archive_of(subset, root)))
            highest = max(highest, taken + left + unpacked)
            taken += left + unpacked - subset.size  # the archive goes, with what was there of it
    return highest
