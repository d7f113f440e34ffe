"""A teacher's outputs on disk: run it once, teach with it as often as wanted. No torch here.

    cache.json          the form: which teacher, and what is kept of it
    000-00000.bin       records of many utterances, end to end
    000-00000.json      where each of them lies, and how long and loud the audio was; written last:
                        without it the shard does not exist

A record of T frames, K of V symbols kept, R temperatures, D channels, little-endian:

    ids      [T,K]  uint16     the likeliest symbols, best first    } only where K < V
    norms    [T,R]  float32    ln sum over all V of exp(score / tau) }
    scores   [T,K]  float16    ln p - ln p of the likeliest symbol: 0 to about -30
    hidden   [T,D]  float16    hidden states, if wanted: the last ones, or all layers side by side

Scores are differences because float16 of a raw logit is off by 1e-2, enough for probabilities that
sum to more than 1 and a negative rest. With the exact norms, (score - tau norm) / tau is what it
was before to 4e-3 wherever p is above 1e-7 of the largest. With every symbol kept, the norm at any
temperature follows from the scores.

Each process writes shards of its own, complete ones only, each at once under its final name; a
process that is killed loses what it has not yet written, a minute's work at most.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from lact_asr.utils.errors import DataError
from lact_asr.utils.files import read_json, write_atomic, write_json
from lact_asr.utils.locks import no_fence

VERSION = 3
READABLE = (2, VERSION)  # 2 does not know how loud its audio was, nor the version of the features
FORM = "cache.json"
SHARD = 1 << 28  # bytes after which a shard is written
OPEN = 128  # shards held open by a reader

Key = tuple[str, float]  # utterance, and the speed at which it was played
Array = NDArray[Any]
Hidden = Literal["none", "last", "all"]  # layers


@dataclass(frozen=True)
class Form:
    """What a cache holds, and whose words they are; two caches of one form are one cache."""

    weights: str  # sha256 of the teacher's weights
    family: str
    model: dict[str, Any]  # its configuration, features among it
    vocabulary: dict[str, Any]
    frame_rate: float  # frames per second
    symbols: int  # V, with the blank
    kept: int  # K; V where the vocabulary is kept whole
    temperatures: list[float]  # whose norms are kept; empty where it is kept whole
    hidden: Hidden  # whose hidden states are kept
    widths: list[int]  # of those, the last ones last; D is their sum
    precision: str  # arithmetic that the teacher ran in
    features: int = 1  # version of the features that it heard
    version: int = VERSION

    @property
    def whole(self) -> bool:
        """Whether every symbol is kept."""
        return self.kept == self.symbols

    def layout(self) -> dict[str, tuple[int, type[np.generic]]]:
        """Columns and type of each part of a record, in their order."""
        parts: dict[str, tuple[int, type[np.generic]]] = {
            "ids": (0 if self.whole else self.kept, np.uint16),
            "norms": (len(self.temperatures), np.float32),
            "scores": (self.kept, np.float16),
            "hidden": (sum(self.widths), np.float16),
        }
        return {name: part for name, part in parts.items() if part[0]}

    def differences(self, other: "Form") -> list[str]:
        """What the form of a folder has otherwise, in words."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name}: {_short(theirs[name])} there, {_short(mine[name])} wanted"
            for name in mine
            if mine[name] != theirs[name]
        ]


@dataclass(frozen=True)
class Entry:
    """Where one record lies."""

    shard: str
    offset: int
    length: int  # bytes
    crc: int
    frames: int
    samples: int  # of the wave that was heard
    loudness: Sequence[int] = ()  # and how loud it was (`distill.cache.loudness`), where known


def open_cache(folder: Path, form: Form) -> None:
    """Make the folder a cache of this form; DataError if it is one of another."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FORM).exists():
        write_json(folder / FORM, asdict(form))
    apart = form.differences(read_form(folder))
    if apart:
        raise DataError(
            f"{folder} is a cache of something else ({'; '.join(apart)}): write to another folder, "
            "or remove this one"
        )


def read_form(folder: Path) -> Form:
    """The form of a cache; DataError if the folder is none."""
    try:
        described = read_json(folder / FORM)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is no teacher cache ({error}): name the folder that a `cache` step wrote"
        ) from error
    if described.get("version") not in READABLE:
        raise DataError(
            f"{folder} is a cache of version {described.get('version')}, this code reads "
            f"{' and '.join(map(str, READABLE))}: run its `cache` step again"
        )
    return Form(**described)


def read_index(folder: Path) -> dict[Key, Entry]:
    """Every record of the complete shards."""
    found: dict[Key, Entry] = {}
    for path in sorted(folder.glob("[0-9]*-[0-9]*.json")):
        for identity, speed, *known in read_json(path):
            found[identity, speed] = Entry(path.stem, *known)
    return found


class Writer:
    """The shards of one process."""

    def __init__(self, folder: Path, rank: int, fence: Callable[[], None] = no_fence) -> None:
        self.folder, self.rank, self.fence = folder, rank, fence
        taken = [int(path.stem.split("-")[1]) for path in folder.glob(f"{rank:03d}-*.json")]
        self.number = max(taken, default=-1) + 1
        self.records: list[bytes] = []
        self.index: list[list[object]] = []
        self.size = 0  # bytes not yet written

    def add(
        self, key: Key, record: bytes, frames: int, samples: int, loudness: Sequence[int]
    ) -> None:
        """Take a record; it is on disk after the next `flush`."""
        heard = (frames, samples, list(loudness))
        self.index.append([*key, self.size, len(record), zlib.crc32(record), *heard])
        self.records.append(record)
        self.size += len(record)
        if self.size >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken as one shard: the records, then their index."""
        if not self.index:
            return
        self.fence()
        name = f"{self.rank:03d}-{self.number:05d}"
        write_atomic(self.folder / f"{name}.bin", b"".join(self.records))
        write_atomic(self.folder / f"{name}.json", json.dumps(self.index))
        self.number += 1
        self.records, self.index, self.size = [], [], 0


class Reader:
    """Records by key, each checked against its checksum."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.form = folder, read_form(folder)
        self.index = read_index(folder)
        self._open = lru_cache(OPEN)(self._opened)

    def entry(self, identity: str, speed: float, samples: int) -> Entry:
        """Where an utterance lies; DataError if it was not heard, or sounded otherwise then."""
        entry = self.index.get((identity, speed))
        if entry is None:
            raise DataError(self.absent(identity, speed))
        if entry.samples != samples:
            raise DataError(
                f"{identity} at speed {speed:g} has {samples} samples, and had {entry.samples} "
                f"when {self.folder} was written: run the `cache` step again into another folder"
            )
        return entry

    def record(self, entry: Entry) -> dict[str, Array]:
        """The parts of a record, [T,columns] each; DataError names a damaged shard."""
        path = self.folder / f"{entry.shard}.bin"
        try:
            data = os.pread(self._open(path).fileno(), entry.length, entry.offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {_again(path)}") from error
        if zlib.crc32(data) != entry.crc:
            raise DataError(
                f"{path} is damaged between bytes {entry.offset} and {entry.offset + entry.length}"
                f": a checksum does not fit; {_again(path)}"
            )
        return unpack_record(data, entry.frames, self.form)

    def missing(self, identities: Iterable[str], speeds: Iterable[float]) -> list[Key]:
        """What of this has no record."""
        wanted = [(identity, speed) for speed in speeds for identity in identities]
        return [key for key in wanted if key not in self.index]

    def absent(self, identity: str, speed: float) -> str:
        """In words, that there is no such record and what to do."""
        speeds = sorted({speed for name, speed in self.index if name == identity})
        if not speeds:
            return (
                f"{self.folder} has no teacher's words for {identity}: run the `cache` step on the "
                "manifest that the student learns from"
            )
        return (
            f"{self.folder} knows {identity} at speed {', '.join(f'{s:g}' for s in speeds)}, not "
            f"at {speed:g}: add it to the `cache` step's speeds, or take it out of the student's "
            "training.augment.speeds"
        )

    @staticmethod
    def _opened(path: Path) -> BinaryIO:
        return path.open("rb", buffering=0)  # closed with the last reference to it


def round_parts(parts: Mapping[str, Array], form: Form) -> dict[str, Array]:
    """[T,columns] parts in the types and the order of a record; too large becomes infinite."""
    with np.errstate(over="ignore"):
        return {name: parts[name].astype(kind) for name, (_, kind) in form.layout().items()}


def pack_record(rows: Mapping[str, Array], form: Form) -> bytes:
    """The record of rounded parts."""
    return b"".join(np.ascontiguousarray(rows[name]).tobytes() for name in form.layout())


def unpack_record(data: bytes, frames: int, form: Form) -> dict[str, Array]:
    """The parts of a record, without copying it."""
    parts: dict[str, Array] = {}
    start = 0
    for name, (columns, kind) in form.layout().items():
        count = frames * columns
        parts[name] = np.frombuffer(data, kind, count, start).reshape(frames, columns)
        start += count * np.dtype(kind).itemsize
    return parts


def _again(path: Path) -> str:
    return f"remove {path.stem}.bin and {path.stem}.json and run the `cache` step again"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
