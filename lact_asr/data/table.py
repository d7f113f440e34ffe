"""A table of the user's own: one recording a line, as CSV, TSV or JSON lines, into utterances.

    path,sentence,client_id               the names of the columns are settings
    clips/1.mp3,"Guten Tag, Welt.",anna   paths start at the table's folder

Any audio that soundfile reads will do. Every recording is read once and judged (`corpus_check`);
what is found is named by the table's line.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lact_asr.config.table import Columns
from lact_asr.data.corpus_check import Finding, Heard, judge, listen
from lact_asr.data.manifest import Utterance
from lact_asr.utils.errors import DataError
from lact_asr.utils.progress import Progress

SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": ""}
THREADS = 4  # decoding leaves Python's lock


class Row(NamedTuple):
    """One line of a table."""

    place: str  # file:line
    id: str
    audio: Path
    text: str
    speaker: str


class Checked(NamedTuple):
    """What a table comes to."""

    utterances: list[Utterance]  # without those that have a fatal finding
    findings: list[tuple[str, Finding]]  # with file:line

    def lines(self) -> list[str]:
        """The findings for people."""
        return [f"{place}: {finding.said}" for place, finding in self.findings]

    def fatal(self) -> list[str]:
        """Those that leave a recording out."""
        return [f"{place}: {finding.said}" for place, finding in self.findings if finding.fatal]

    def counts(self) -> str:
        """`3 silent, 1 doubled`."""
        counted = Counter(finding.kind for _, finding in self.findings)
        return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())


def read_table(path: Path, columns: Columns) -> list[Row]:
    """The lines of a table; DataError where it is none, or lacks a column."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: write a table that ends in {', '.join(SUFFIXES)}")
    try:
        return list(_rows(path, columns))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the table {path}: {error}") from error


def check_table(rows: Sequence[Row], seen: dict[int, str], label: str) -> Checked:
    """Listen to every recording; `seen` has the audio of earlier tables, this one's is added."""
    utterances, findings, names = list[Utterance](), list[tuple[str, Finding]](), dict[str, str]()
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(f"recordings of {label}", len(rows), "files") as progress,
    ):
        for row, heard in zip(rows, pool.map(lambda row: listen(row.audio), rows), strict=True):
            found = _judge_row(row, heard, seen, names)
            findings += [(row.place, each) for each in found]
            if isinstance(heard, Heard) and not any(each.fatal for each in found):
                names[row.id] = row.place
                utterances.append(
                    Utterance(row.id, row.audio, heard.seconds, row.text, row.speaker)
                )
            progress.advance()
    return Checked(utterances, findings)


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


def _rows(path: Path, columns: Columns) -> Iterator[Row]:
    for line, record in _records(path):
        place = f"{path}:{line}"
        for key in (columns.audio, columns.text):
            if not isinstance(record.get(key), str):
                there = ", ".join(str(name) for name in record if name is not None)
                raise DataError(
                    f"{place}: no text in the column {key!r}; the columns are {there}: write "
                    "columns: {audio: ..., text: ...} with their names"
                )
        audio = path.parent / str(record[columns.audio])
        name = str(record.get(columns.id) or Path(str(record[columns.audio])).with_suffix(""))
        speaker = str(record.get(columns.speaker) or "")
        yield Row(
            place, name.strip("/").replace("/", "-"), audio, str(record[columns.text]), speaker
        )


def _records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and values by column."""
    delimiter = SUFFIXES[path.suffix]
    with path.open(encoding="utf-8-sig", newline="") as file:
        if delimiter:
            reader = csv.DictReader(file) if delimiter == "," else _tabbed(file)
            for record in reader:
                yield reader.line_num, dict(record)
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parsed(line, f"{path}:{number}")


def _tabbed(file: Iterable[str]) -> "csv.DictReader[str]":
    """Quotation marks of a TSV are text, as Mozilla's Common Voice has them."""
    return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _parsed(line: str, place: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON at column {error.colno}: {error.msg}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a JSON object")
    return record
