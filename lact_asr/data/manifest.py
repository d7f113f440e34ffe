"""A manifest: one JSON line per utterance, the only thing that training reads about a corpus.

    {"id": "84-121123-0000", "audio": "../LibriSpeech/dev-clean/84/121123/84-121123-0000.flac",
     "duration": 3.275, "text": "GO", "speaker": "84"}        (on one line)

"video" may name a file of video beside the audio (`lact_asr.data.video`), for models that look at
it. "offset" is where an utterance begins in its recording, in seconds, if it is a part of it;
"channel" is the one in which it is heard, from 0 on, in place of their mean.

Durations are read from the audio headers once, when the manifest is written: reading them at the
start of training has cost a public project 15 minutes before its first step (104,014 files, twice,
over NFS).
"""

import gc
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lact_asr.utils.errors import DataError
from lact_asr.utils.files import write_atomic

CHANNELS = 1024  # of a recording, as libsndfile (1.2) allows
SHOWN = 20  # mistakes listed in one error; the rest are counted


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording and what is said in it."""

    id: str
    audio: Path
    duration: float  # seconds
    text: str
    speaker: str
    video: Path | None = None
    offset: float | None = None  # seconds into the recording, of a part of it
    channel: int | None = None  # of the recording, from 0 on; their mean if None


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """No garbage collection: while 104,014 utterances are made there is none to find, and looking
    for it takes a quarter of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_garbage_collection()
def read_manifest(path: Path) -> list[Utterance]:
    """The utterances of a manifest; relative paths start at the manifest's folder.

    Raises DataError with every bad line as file:line, and for a manifest without utterances.
    """
    path = _absolute(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the manifest {path}: {error}") from error
    folder = str(path.parent)
    utterances: dict[str, Utterance] = {}
    mistakes: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            utterance = _parse(line, folder)
            if utterance.id in utterances:
                raise ValueError(f"a second utterance with the id {utterance.id!r}")
            utterances[utterance.id] = utterance
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    raise_all(mistakes)
    if not utterances:
        raise DataError(f"{path}: no utterances in this manifest")
    return list(utterances.values())


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest atomically.

    Files under the parent of the manifest's folder (the data root) are stored as relative paths, so
    that the root can be moved as a whole; files elsewhere as absolute ones.
    """
    path = _absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    root = str(path.parent.parent).rstrip("/") + "/"
    lines = [json.dumps(_record(each, root), ensure_ascii=False) + "\n" for each in utterances]
    write_atomic(path, "".join(lines))


def raise_all(mistakes: Sequence[str]) -> None:
    """One DataError with every mistake (the first twenty in full), if there are any."""
    if mistakes:
        raise DataError(listed(mistakes))


def listed(mistakes: Sequence[str]) -> str:
    """A mistake a line: the first twenty, and how many more there are."""
    more = [f"... and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
    return "\n".join([*mistakes[:SHOWN], *more])


def json_object(line: str) -> dict[str, Any]:
    """A line as a JSON object, or ValueError saying what is wrong with it."""
    try:
        record = json.loads(line)
        if "\\u" in line:  # half of a pair, which JSON allows, is no character
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at column {error.colno}: {error.msg}") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise ValueError(f"{half} without its other half is no character") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: brackets in brackets") from error
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")
    return record


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow symbolic links


def _record(utterance: Utterance, root: str) -> dict[str, Any]:
    record = {
        "id": utterance.id,
        "audio": _within(root, utterance.audio),
        "duration": round(utterance.duration, 6),
        "text": utterance.text,
        "speaker": utterance.speaker,
    }
    more = {
        "video": utterance.video and _within(root, utterance.video),
        "offset": utterance.offset,
        "channel": utterance.channel,
    }
    return {**record, **{key: value for key, value in more.items() if value is not None}}


def _within(root: str, path: Path) -> str:
    whole = os.path.abspath(path)  # noqa: PTH100 - strings: 281,241 paths in 2 s, not 6
    return "../" + whole[len(root) :] if whole.startswith(root) else whole


def _parse(line: str, folder: str) -> Utterance:
    """One line as an Utterance, or ValueError saying what is wrong with it."""
    record = json_object(line)
    if "audio_filepath" in record and "audio" not in record:
        raise ValueError(
            "a line of NeMo's: read the file in a step of kind download, with source: table and "
            "columns: {audio: audio_filepath}"
        )
    for key in ("id", "audio", "text", "speaker"):
        if not isinstance(record.get(key), str):
            raise ValueError(f"the key {key!r} must be a string, found {record.get(key)!r}")
    seconds = _number(record.get("duration"))
    if not 0 < seconds < math.inf:
        said = repr(record.get("duration"))
        raise ValueError(f"'duration' must be a number of seconds above 0, found {said}")
    offset, channel = record.get("offset"), record.get("channel")
    if offset is not None and not 0 <= _number(offset) < math.inf:
        raise ValueError(f"'offset' must be a number of seconds from 0 on, found {offset!r}")
    if channel is not None and not (type(channel) is int and 0 <= channel < CHANNELS):
        raise ValueError(f"'channel' must be a whole number from 0 on, found {channel!r}")
    audio, video = _join_path(folder, record["audio"]), record.get("video")
    if video is not None:
        if not isinstance(video, str):
            raise ValueError(f"the key 'video' must be a string, found {video!r}")
        if offset is not None:
            raise ValueError("'offset' is for utterances without a video, which has none")
        video = _join_path(folder, video)
    heard = (audio, seconds, record["text"], record["speaker"])
    offset = None if offset is None else _number(offset)
    return Utterance(record["id"], *heard, video, offset, channel)


def _number(value: object) -> float:
    """A number of a JSON line, NaN if it is none; integers of any size."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(repr(value)) if is_number else math.nan


def _join_path(folder: str, path: str) -> Path:
    return Path(os.path.normpath(os.path.join(folder, path)))  # noqa: PTH118
