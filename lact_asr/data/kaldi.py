"""Data directories of Kaldi and ESPnet into utterances: wav.scp, text, segments, utt2spk.

    wav.scp     talk-1 audio/talk-1.wav                 a recording and its file
                talk-2 flac -c -d -s audio/talk-2.flac | or a command that decodes it
    segments    anna-1 talk-1 12.30 15.72               parts of recordings, seconds; may be absent
    text        anna-1 GUTEN TAG                        what is said in each
    utt2spk     anna-1 anna                             who says it; may be absent

Commands are not run: of those that decode one file (flac, sph2pipe, sox, ffmpeg, cat) the file and
the channel are taken, others are refused by their line. See https://kaldi-asr.org/doc/data_prep.html
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from lact_asr.data.manifest import raise_all
from lact_asr.data.table import Row
from lact_asr.utils.errors import DataError

OPTIONS: dict[str, dict[str, int]] = {  # what changes nothing that is heard: words behind each
    "flac": dict.fromkeys(("-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "-F"), 0),
    "sph2pipe": {"-p": 0, "-f": 1, "-c": 1},
    "sox": {"-t": 1, "-r": 1, "-b": 1, "-c": 1, "-e": 1, "-G": 0, "-D": 0},
    "ffmpeg": {
        **{"-i": 0, "-nostdin": 0, "-vn": 0, "-hide_banner": 0, "-f": 1, "-ar": 1, "-ac": 1},
        **{"-ab": 1, "-acodec": 1, "-c:a": 1, "-v": 1, "-loglevel": 1},
    },
    "cat": {},
}
OUTPUTS = ("-", "pipe:1", "/dev/stdout")


class Source(NamedTuple):
    """Where a recording is: a file, and the channel of it (None: their mean)."""

    file: str
    channel: int | None


class Segment(NamedTuple):
    """A part of a recording, seconds; without an end, up to the recording's."""

    place: str  # file:line
    recording: str
    start: float | None
    seconds: float | None


def read_kaldi(folder: Path, start: Path) -> list[Row]:
    """The utterances of a data directory, whose paths begin at the folder `start`; DataError with
    every line that cannot be taken.
    """
    mistakes: list[str] = []
    sources = _sources(folder / "wav.scp", mistakes)
    segments = _segments(folder, sources, mistakes)
    texts = {name: said for _, name, said in _lines(folder / "text")}
    speakers = folder / "utt2spk"
    spoken = {name: who for _, name, who in _lines(speakers)} if speakers.exists() else {}
    mistakes += [
        f"{place}: nothing in {'segments' if (folder / 'segments').exists() else 'wav.scp'} has "
        f"the name {name!r}"
        for place, name, _ in _lines(folder / "text")
        if name not in segments
    ]
    raise_all(mistakes)
    if not segments:
        raise DataError(f"{folder}: no utterances in this data directory")
    rows = []
    for name, (place, recording, offset, seconds) in segments.items():
        file, channel = sources[recording]
        heard = (start / file, texts.get(name, ""), spoken.get(name, ""))
        rows.append(Row(place, name, *heard, offset, seconds, channel))
    return rows


def _lines(path: Path) -> list[tuple[str, str, str]]:
    """file:line, the first word, and the rest of every line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.object[error.start]:#x} is not UTF-8") from error
    words = [(f"{path}:{number}", line.split(None, 1)) for number, line in enumerate(lines, 1)]
    return [(place, each[0], " ".join(each[1:]).strip()) for place, each in words if each]


def _sources(path: Path, mistakes: list[str]) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for place, name, rest in _lines(path):
        try:
            if name in sources:
                raise ValueError(f"a second recording of the name {name!r}")
            sources[name] = source(rest)
        except ValueError as error:
            mistakes.append(f"{place}: {error}")
            sources.setdefault(name, Source("", None))
    return sources


def source(given: str) -> Source:
    """A file, from what wav.scp has behind a name: its path, or a command that decodes it, which
    ends in `|`; ValueError for any other command.
    """
    if not given:
        raise ValueError("a name without a file")
    if not given.endswith("|"):
        return Source(given, None)
    refusal = ValueError(
        f"`{given}` is a command, and commands are not run: of {', '.join(OPTIONS)} that decode "
        "one file the file is read; write files for the others, and their paths here"
    )
    try:
        program, *words = shlex.split(given[:-1])
    except ValueError as error:
        raise refusal from error
    read = _decoded(PurePath(program).name, words)
    if read is None:
        raise refusal
    return read


def _decoded(program: str, words: Sequence[str]) -> Source | None:
    """The file that a program with these words decodes, and its channel; None if it does more."""
    options, left, files, channel = OPTIONS.get(program), list(words), list[str](), ""
    if options is None:
        return None
    while left:
        word = left.pop(0)
        if program == "sox" and word in OUTPUTS:
            *effect, value = left or ["rate", ""]
            if effect not in (["remix"], ["rate"]):
                return None
            channel, left = (value if effect == ["remix"] else channel), []
        elif word in options:
            values, left = left[: options[word]], left[options[word] :]
            channel = "".join(values) if (program, word) == ("sph2pipe", "-c") else channel
        elif word not in OUTPUTS:
            files.append(word)
    if len(files) != 1 or files[0].startswith("-") or not re.fullmatch("|[1-9][0-9]{0,2}", channel):
        return None
    return Source(files[0], int(channel) - 1 if channel else None)


def _segments(
    folder: Path, sources: Mapping[str, Source], mistakes: list[str]
) -> dict[str, Segment]:
    """What is to be heard of which recording, by utterance: all of it, where nothing says more."""
    path = folder / "segments"
    if not path.exists():
        whole = _lines(folder / "wav.scp")
        return {name: Segment(place, name, None, None) for place, name, _ in whole}
    segments: dict[str, Segment] = {}
    for place, name, rest in _lines(path):
        try:
            if name in segments:
                raise ValueError(f"a second segment of the name {name!r}")
            segments[name] = _segment(place, rest)
            if segments[name].recording not in sources:
                raise ValueError(f"wav.scp has no recording {segments[name].recording!r}")
        except ValueError as error:
            mistakes.append(f"{place}: {error}")
    return segments


def _segment(place: str, given: str) -> Segment:
    recording, start, end, *more = [*given.split(), "", "", ""]
    try:
        first, last = float(start), float(end)
    except ValueError:
        first = last = math.nan
    if any(more) or not (0 <= first < math.inf and (last == -1 or first < last < math.inf)):
        raise ValueError(f"write UTTERANCE RECORDING START END, in seconds, and not {given!r}")
    return Segment(place, recording, first, None if last == -1 else last - first)
