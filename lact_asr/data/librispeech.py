"""A folder in LibriSpeech layout, read into utterances.

    84/121123/84-121123.trans.txt       one line per recording: 84-121123-0000 GO DO YOU HEAR
    84/121123/84-121123-0000.flac       or .wav, .opus, .ogg, .mp3

The speaker is what stands before the first - of an id, where a folder has that name; else the first
folder, as in anna/2020/talk_17.wav. Every transcript line needs its recording and every recording
its line; whatever is missing, doubled or truncated is reported at once, by name.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lact_asr.data.audio import duration, is_recording
from lact_asr.data.folder import walk_visible
from lact_asr.data.manifest import Utterance, raise_all
from lact_asr.utils.errors import DataError
from lact_asr.utils.progress import Progress

THREADS = 16  # they wait for the file system; from memory it is 5,000 headers a second with any


def scan(folder: Path) -> list[Utterance]:
    """Every utterance below `folder`, sorted by id; DataError with all that is wrong."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Utterance] = {}
    mistakes: list[str] = []
    for directory, names in walk_visible(folder):
        for utterance in _chapter(directory, names, directory.relative_to(folder).parts, mistakes):
            if utterance.id in found:
                mistakes.append(f"{utterance.audio}: {found[utterance.id].audio} has the same id")
            found[utterance.id] = utterance
    if not found and not mistakes:
        raise DataError(
            f"{folder}: no transcripts (expected <speaker>/<chapter>/<speaker>-<chapter>.trans.txt)"
        )
    utterances = [found[key] for key in sorted(found)]
    durations = _durations(utterances, folder.name, mistakes)
    raise_all(mistakes)
    pairs = zip(utterances, durations, strict=True)
    return [replace(each, duration=seconds) for each, seconds in pairs]


def hold_out(
    utterances: Sequence[Utterance], speakers: int, parts: int
) -> tuple[list[Utterance], ...]:
    """The utterances split by speaker: `parts` lists of so many speakers each, then all the rest.

    Speakers are drawn by a hash of their names: the same ones on every machine, and adding
    recordings or other speakers moves no one between the lists unless they are drawn instead.
    """
    names = sorted({each.speaker for each in utterances}, key=_draw)
    if names == [""]:
        raise DataError(
            "no utterance has a speaker, and `holdout_speakers` holds out speakers: write who "
            "speaks into utt2spk or into a column (columns: {speaker: ...}), or name subsets for "
            "dev and test"
        )
    if len(names) <= speakers * parts:
        raise DataError(
            f"holding out {parts} x {speakers} speakers leaves none of {len(names)} for training:"
            " make `holdout_speakers` smaller"
        )
    place = {name: min(index // speakers, parts) for index, name in enumerate(names)}
    lists: tuple[list[Utterance], ...] = tuple([] for _ in range(parts + 1))
    for each in utterances:
        lists[place[each.speaker]].append(each)
    return lists


def _draw(speaker: str) -> str:
    return hashlib.sha256(speaker.encode()).hexdigest()


def _chapter(
    directory: Path, names: Sequence[str], folders: Sequence[str], mistakes: list[str]
) -> list[Utterance]:
    """The utterances of one folder, durations still zero; `folders` lead to it."""
    recordings: dict[str, Path] = {}
    for path in (directory / name for name in names):
        if is_recording(path):
            if path.stem in recordings:
                mistakes.append(f"{path}: {recordings[path.stem].name} is the same recording")
            recordings[path.stem] = path
    texts: dict[str, str] = {}
    for path in (directory / name for name in names if name.endswith(".trans.txt")):
        texts.update(_transcripts(path, recordings, mistakes))
    mistakes += [f"{recordings[key]}: no transcript" for key in recordings if key not in texts]
    both = [key for key in texts if key in recordings]
    return [
        Utterance(key, recordings[key], 0.0, texts[key], _speaker(key, folders)) for key in both
    ]


def _speaker(identity: str, folders: Sequence[str]) -> str:
    """Whole ids for speakers would put one voice into train and dev, as speakers are held out."""
    first = identity.split("-")[0]
    return first if first in folders or not folders else folders[0]


def _transcripts(path: Path, recordings: dict[str, Path], mistakes: list[str]) -> dict[str, str]:
    """id -> text of one .trans.txt."""
    texts: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # Windows may write a mark first
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{path}: {error}")
        return texts
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, *words = line.split()
        if not words:
            mistakes.append(f"{path}:{number}: {key} has no text")
        if key in texts:
            mistakes.append(f"{path}:{number}: a second line for {key}")
        if key not in recordings:
            mistakes.append(f"{path}:{number}: no audio file for {key} beside this transcript")
        texts[key] = " ".join(words)
    return texts


def _durations(utterances: Sequence[Utterance], label: str, mistakes: list[str]) -> list[float]:
    """Seconds of every recording; 0 for those that end up among the mistakes."""

    def measure(utterance: Utterance) -> float | DataError:
        try:
            return duration(utterance.audio)
        except DataError as error:
            return error

    seconds: list[float] = []
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(f"headers of {label}", len(utterances), "files") as progress,
    ):
        for measured in pool.map(measure, utterances):
            if isinstance(measured, DataError):
                mistakes.append(str(measured))
            seconds.append(0.0 if isinstance(measured, DataError) else measured)
            progress.advance()
    return seconds
