"""A table of the user's own: one recording a line, as CSV, TSV or JSON lines, into utterances.

    path,sentence,client_id               the names of the columns are settings
    clips/1.mp3,"Guten Tag, Welt.",anna   paths begin at the folder of the audio

A line with an `offset` is a part of its recording. Any audio that soundfile reads will do. Every
recording is read once and judged (`corpus_check`); what is found is named by the table's line.
"""

import codecs
import csv
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from lact_asr.config.table import Columns
from lact_asr.data.corpus_check import Finding, Heard, judge, listen
from lact_asr.data.manifest import CHANNELS, Utterance, json_object, raise_all
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import is_there
from lact_asr.utils.progress import Progress

if TYPE_CHECKING:
    import _csv

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")  # NeMo calls JSON lines .json
OFFSETS = ("offset", "start")  # columns, where none is named
PLACES = ("offset", "end", "duration", "channel")  # where in its recording an utterance is
# What Common Voice, Hugging Face's folders of audio, NeMo and tables by hand call these two.
USUAL = {
    "audio": ("path", "file", "file_name", "filename", "audio_filepath", "audio_path", "wav"),
    "text": ("sentence", "transcription", "transcript", "normalized_text"),
}
MARKS = ",;\t|"  # between the columns of CSV, the first of them that its first line has
SHOWN = 40  # characters of a column's name in a message: of a table without a header it is a text
THREADS = 4  # decoding leaves Python's lock


Records = list[tuple[int, dict[str, object]]]  # number of the line, values by column


class Row(NamedTuple):
    """One line of a table."""

    place: str  # file:line
    id: str
    audio: Path
    text: str
    speaker: str
    offset: float | None = None  # seconds into the recording, of a part of it
    seconds: float | None = None  # of the part; None up to the recording's end
    channel: int | None = None  # from 0; None is the mean of all


class Checked(NamedTuple):
    """What a table comes to."""

    utterances: list[Utterance]  # without those that have a fatal finding
    findings: list[tuple[str, Finding]]  # with file:line

    def lines(self) -> list[str]:
        """The findings for people."""
        return [f"{place}: {finding.said}" for place, finding in self.findings]

    def fatal(self) -> list[tuple[str, Finding]]:
        """Those that leave a recording out."""
        return [each for each in self.findings if each[1].fatal]

    def counts(self) -> str:
        """`3 silent, 1 doubled`."""
        return counts(finding for _, finding in self.findings)


def counts(findings: Iterable[Finding]) -> str:
    """How many of each kind, the most frequent first."""
    counted = Counter(finding.kind for finding in findings)
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())


def read_table(path: Path, columns: Columns, start: Path) -> list[Row]:
    """The lines of a table, whose paths begin at the folder `start`; DataError with every line that
    cannot be taken as it stands.
    """
    with _opened(path) as file:
        read = (_json_lines if _is_json(path) else _fields)(path, file)
    if not read:
        raise DataError(f"{path}: no recordings in this table")
    there = list(dict.fromkeys(name for _, record in read for name in record))
    _expect_names(path, there, columns, PLACES)
    _expect_ends(path, there, columns)
    if not start.is_dir():
        raise DataError(f"{path}: there is no folder {start}, where its paths begin")
    rows, mistakes = list[Row](), list[str]()
    for line, record in read:
        try:
            rows.append(_row(f"{path}:{line}", start, record, columns))
        except ValueError as error:
            mistakes.append(f"{path}:{line}: {error}")
    raise_all(mistakes)
    return rows


def expect_columns(path: Path, columns: Columns) -> None:
    """DataError where the first line of a table shows that it cannot be taken: a line of CSV names
    all columns, one of JSON has at least its recording and its text.
    """
    with _opened(path) as file:
        first = next(file, "")
    if _is_json(path):
        for _, record in _json_lines(path, [first]):
            _expect_names(path, list(record), columns, ())
        return
    with suppress(csv.Error):  # a name that goes on in the next line
        for header in filter(None, _reader(path, [first])):
            _expect_names(path, header, columns, PLACES)
            _expect_ends(path, header, columns)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A table as text; DataError where it is none, also while it is read."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: write a table that ends in {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot read the table {path}: {error}") from error
    except UnicodeDecodeError as error:
        wide = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        code, name = ("UTF-16", "UTF-16") if wide else ("LATIN1", "Latin-1")
        raise DataError(
            f"{path}: byte {error.object[error.start]:#x} is not UTF-8: save the table as UTF-8, "
            f"as iconv --from-code {code} does with one of {name}"
        ) from error


def _is_json(path: Path) -> bool:
    return path.suffix.lower().startswith(".json")


def check_table(rows: Sequence[Row], seen: dict[int, str], label: str) -> Checked:
    """Listen to every recording; `seen` has the audio of earlier tables, this one's is added."""
    utterances, findings, names = list[Utterance](), list[tuple[str, Finding]](), dict[str, str]()
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(f"recordings of {label}", len(rows), "files") as progress,
    ):
        for row, heard in pool.map(_listen, rows):
            found = _judge_row(row, heard, seen, names)
            findings += [(row.place, each) for each in found]
            if isinstance(heard, Heard) and not any(each.fatal for each in found):
                names[row.id] = row.place
                said = (row.id, row.audio, heard.seconds, row.text, row.speaker)
                utterances.append(Utterance(*said, offset=row.offset, channel=row.channel))
            progress.advance()
    return Checked(utterances, findings)


def _listen(row: Row) -> tuple[Row, Heard | Finding]:
    """A row with its file's own spelling, and what is in the file."""
    spelled = row.audio if is_there(row.audio) else next(_other_spellings(row.audio), row.audio)
    return row._replace(audio=spelled), listen(spelled, row.offset, row.seconds, row.channel)


def _other_spellings(path: Path) -> Iterator[Path]:
    """Files that a path may mean: a Mac writes ä as two letters, a and a mark, where a table has
    one; and Windows parts folders by backslashes.
    """
    name = str(path)
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    yield from filter(is_there, map(Path, [*forms, name.replace("\\", "/")]))


def _judge_row(
    row: Row, heard: Heard | Finding, seen: dict[int, str], names: dict[str, str]
) -> list[Finding]:
    if isinstance(heard, Finding):
        return [heard]
    found = judge(heard, row.text)
    if not row.text.strip():
        found.append(Finding("without a text", "without a text"))
    first = seen.setdefault(heard.fingerprint, row.place)
    if first != row.place:
        found.append(Finding("doubled", f"doubled: the same audio as {first}"))
    elif row.id in names:
        found.append(Finding("doubled", f"doubled: {names[row.id]} has the id {row.id!r} too"))
    return found


def _reader(path: Path, lines: Iterable[str]) -> "_csv.Reader":
    """Of CSV, with semicolons where a spreadsheet's country has its commas in numbers; or of TSV,
    whose quotation marks are text, as Mozilla's Common Voice has them.
    """
    lines = iter(lines)
    first = next(lines, "")
    lines = itertools.chain([first], lines)
    if path.suffix.lower() == ".tsv":
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    between = next((mark for mark in MARKS if mark in first), MARKS[0])
    return csv.reader(lines, delimiter=between, strict=True)


def _fields(path: Path, file: Iterable[str]) -> Records:
    """Of CSV or TSV. A line of another length than the header is refused: a comma in a text without
    quotation marks would leave a text that ends there.
    """
    reader = _reader(path, file)
    try:
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        names = ", ".join(map(_shown, twice))
        raise DataError(f"{path}:1: more than one column {names}: the first line names each once")
    between = reader.dialect.delimiter
    quoted = reader.dialect.quoting != csv.QUOTE_NONE
    advice = f": put a text with {between!r} into quotation marks" if quoted else ""
    raise_all(
        [
            f"{path}:{line}: fields: {len(row)}, in the header: {len(header)}{advice}"
            for line, row in rows
            if len(row) != len(header)
        ]
    )
    return [(line, dict(zip(header, row, strict=True))) for line, row in rows]


def _json_lines(path: Path, file: Iterable[str]) -> Records:
    records, mistakes = Records(), list[str]()
    for number, line in enumerate(file, start=1):
        if number == 1 and line.lstrip().startswith("["):
            raise DataError(f"{path}: a JSON array: write an object a line, as jq -c '.[]' does")
        try:
            if line.strip():
                records.append((number, json_object(line)))
        except ValueError as error:
            mistakes.append(f"{path}:{number}: {error}")
    raise_all(mistakes)
    return records


def _expect_names(
    path: Path, there: Sequence[str], columns: Columns, places: Sequence[str]
) -> None:
    """The recording, the text, and what of `places` has a name of the user's."""
    given, usual = columns.model_dump(), Columns().model_dump()
    asked = [name for name in places if given[name] not in ("", usual[name])]
    if absent := [name for name in ("audio", "text", *asked) if given[name] not in there]:
        raise DataError(f"{path}: {_absent({name: given[name] for name in absent}, there)}")


def _expect_ends(path: Path, there: Sequence[str], columns: Columns) -> None:
    """Where utterances begin in their recordings, they end somewhere."""
    begins = {columns.offset} if columns.offset else {*OFFSETS}
    if begins & {*there} and not {columns.end, columns.duration} & {*there}:
        raise DataError(
            f"{path}: the column {min(begins & {*there})!r} says where utterances begin, and none "
            "where they end: write columns: {end: ...} or {duration: ...} with its name"
        )


def _absent(absent: dict[str, str], there: Sequence[str]) -> str:
    """What is said of columns that a table lacks, and which of its own are usually meant."""
    meant = {
        name: next((each for each in USUAL.get(name, ()) if each in there), "...")
        for name in absent
    }
    write = ", ".join(f"{name}: {column}" for name, column in meant.items())
    advice = " with the names" if "..." in meant.values() else ""
    return (
        f"no column {', '.join(map(repr, absent.values()))}; the columns are "
        f"{', '.join(map(_shown, there))}: write columns: {{{write}}}{advice}"
    )


def _shown(name: str) -> str:
    return name if len(name) <= SHOWN else f"{name[:SHOWN]}..."


def _row(place: str, start: Path, record: dict[str, object], columns: Columns) -> Row:
    for key in (columns.audio, columns.text):
        if not isinstance(record.get(key), str):
            raise ValueError(f"no text in the column {key!r}")
    audio, text = str(record[columns.audio]), str(record[columns.text])
    offset, seconds, channel = part = _part(record, columns)
    name = record.get(columns.id) or f"{Path(audio).with_suffix('')}{_part_name(*part)}"
    speaker = str(record.get(columns.speaker) or "")
    identity = str(name).strip("/").replace("/", "-")
    return Row(place, identity, start / audio, text, speaker, offset, seconds, channel)


def _part_name(offset: float | None, seconds: float | None, channel: int | None) -> str:
    """What a part's name has behind its recording's: hundredths of seconds, as in Kaldi's."""
    ends = [] if offset is None else [offset, *([] if seconds is None else [offset + seconds])]
    parts = [f"{round(each * 100):07}" for each in ends]
    return "".join(f"-{part}" for part in ([] if channel is None else [str(channel)]) + parts)


def _part(
    record: dict[str, object], columns: Columns
) -> tuple[float | None, float | None, int | None]:
    """Offset and length in seconds, and channel, where a line has them; ValueError."""
    names = [columns.offset] if columns.offset else OFFSETS
    offset = _seconds(record, next((name for name in names if name in record), ""))
    channel = _channel_number(record.get(columns.channel), columns.channel)
    if offset is None:
        return None, None, channel
    end = _seconds(record, columns.end)
    seconds = _seconds(record, columns.duration) if end is None else end - offset
    if seconds is not None and seconds <= 0:
        raise ValueError(f"a part of {seconds:g} s, from {offset:g} s on")
    return offset, seconds, channel


def _seconds(record: dict[str, object], key: str) -> float | None:
    given = record.get(key)
    if given is None or given == "":
        return None
    try:
        seconds = float(str(given))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{given!r} in the column {key!r} is no number of seconds")
    return seconds


def _channel_number(given: object, key: str = "channel") -> int | None:
    """0 for 0 and A, the first; ValueError for what is no channel."""
    if given is None or given == "":
        return None
    number = {"A": 0, "B": 1}.get(str(given).upper())
    if number is None and re.fullmatch(r"[0-9]{1,4}", str(given)):
        number = int(str(given))
    if number is None or number >= CHANNELS:
        raise ValueError(
            f"{given!r} in the column {key!r} is no channel of a recording, such as 0, 1, A or B: "
            "write columns: {channel: ''} if it is about something else"
        )
    return number
