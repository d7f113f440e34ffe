"""A user's own table: every format, every thing that can be wrong with a recording, by its line."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from jobs.kinds.download import Settings, run
from lact_asr.config.table import Columns
from lact_asr.data.corpus_check import Finding, Heard, judge, listen
from lact_asr.data.dataset import Reader, read, whole_corpus
from lact_asr.data.local_copy import stage_files
from lact_asr.data.manifest import read_manifest
from lact_asr.data.table import check_table, read_table
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from tests.jobs.kinds.test_download import job
from tests.lact_asr.spoken import SAID, speak

RATE = 16_000


def noise(path: Path, seconds: float = 1.0, level: float = 0.1, rate: int = RATE) -> Path:
    samples = np.random.default_rng(len(path.name)).normal(0, level, int(seconds * rate))
    soundfile.write(path, np.clip(samples, -1, 1), rate)
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the path's ending says."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix in (".jsonl", ".json"):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(
                file, rows[0], delimiter="\t" if path.suffix.lower() == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".TSV", ".jsonl", ".json"])
def test_every_format_gives_the_same_lines(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"path": "a/1.wav", "sentence": "Guten Tag, Welt", "who": "anna"},
        {"path": "a/2.wav", "sentence": "こんにちは", "who": ""},
    ]
    columns = Columns(audio="path", text="sentence", speaker="who")
    found = read_table(table(tmp_path / f"t{suffix}", rows), columns, tmp_path)
    assert [(row.id, row.audio, row.text, row.speaker) for row in found] == [
        ("a-1", tmp_path / "a" / "1.wav", "Guten Tag, Welt", "anna"),
        ("a-2", tmp_path / "a" / "2.wav", "こんにちは", ""),
    ]
    first = 1 if suffix.startswith(".json") else 2
    assert [row.place for row in found] == [f"{tmp_path}/t{suffix}:{first + n}" for n in range(2)]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", [{"path": "a.wav", "sentence": "x"}])
    with pytest.raises(DataError) as caught:
        read_table(path, Columns(), tmp_path)
    assert str(caught.value) == (
        f"{path}: no column 'audio', 'text'; the columns are path, sentence: "
        "write columns: {audio: path, text: sentence}"
    )
    with pytest.raises(DataError, match=r"write columns: \{audio: path\}$"):
        read_table(path, Columns(text="sentence"), tmp_path)
    with pytest.raises(
        DataError, match=r"columns are a\.wav, a{40}\.\.\.: write columns: \{audio: "
    ):
        read_table(table(path, [{"a.wav": "b.wav", "a" * 41: "x"}]), Columns(), tmp_path)
    with pytest.raises(DataError, match=r"ends in \.csv, \.tsv, \.jsonl, \.json"):
        read_table(tmp_path / "t.xlsx", Columns(), tmp_path)
    (tmp_path / "t.jsonl").write_text('{"audio": "a"\n')
    with pytest.raises(DataError, match=r"t\.jsonl:1: not JSON at column"):
        read_table(tmp_path / "t.jsonl", Columns(), tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"", ": no recordings in this table"),
        ("t.csv", b"audio,text\n\n", ": no recordings in this table"),
        (
            "t.csv",
            b"audio,text,text\na,b,c\n",
            ":1: more than one column text: the first line names each once",
        ),
        ("t.csv", b'audio,text\na,"b\nc,d\n', ":3: unexpected end of data"),
        ("t.csv", b"audio,text\na,gr\xfcn\n", ": byte 0xfc is not UTF-8: save the table as UTF-8"),
        ("t.tsv", b"audio\ttext\na\tb\tc\n", ":2: fields: 3, in the header: 2"),
        ("t.jsonl", b'{"audio": "a", "text": 5}\n', ":1: no text in the column 'text'"),
        ("t.jsonl", b'{"audio": "a", "text": "\\ud83d"}', ":1: \\ud83d without its other half"),
        (
            "t.csv",
            "audio,text\n".encode("utf-16"),
            ": byte 0xff is not UTF-8: save the table as "
            "UTF-8, as iconv --from-code UTF-16 does with one of UTF-16",
        ),
        (
            "t.csv",
            b"audio;text\na;b;c\n",
            ":2: fields: 3, in the header: 2: put a text with ';' into quotation marks",
        ),
        ("t.json", b'[\n{"audio": "a"}]', ": a JSON array: write an object a line, as jq -c '.[]'"),
        ("t.jsonl", b'{"a":' + b"[" * 10**5, ":1: not JSON that can be read: brackets in brackets"),
        ("t.jsonl", b"9" * 5000, ":1: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_table_that_cannot_be_taken_as_it_stands_says_why(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name, Columns(), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}{said}")


def test_a_comma_without_quotation_marks_is_no_end_of_a_text(tmp_path: Path) -> None:
    """A reader that takes the columns that it knows would learn `Guten Tag` of `Guten Tag, Welt`;
    the short line is the second half of a text that has a line end.
    """
    (tmp_path / "t.csv").write_text('audio,text\n1,Guten Tag, Welt\n2,"so, ja"\n3,a\nb\n4,c,d\n')
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "t.csv", Columns(), tmp_path)
    advice = "in the header: 2: put a text with ',' into quotation marks"
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/t.csv:{line}: fields: {fields}, {advice}"
        for line, fields in ((2, 3), (5, 1), (6, 3))
    ]


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_spreadsheet_may_part_its_columns_by_another_mark(tmp_path: Path, mark: str) -> None:
    (tmp_path / "t.csv").write_text(f"audio{mark}text\na.wav{mark}Guten Tag, Welt\n")
    (row,) = read_table(tmp_path / "t.csv", Columns(), tmp_path)
    assert row.audio.name == "a.wav" and row.text == "Guten Tag, Welt"


def test_a_table_of_which_nothing_is_left_is_no_corpus(tmp_path: Path) -> None:
    noise(tmp_path / "dev.wav")
    table(tmp_path / "dev.csv", [{"audio": "dev.wav", "text": "a dev text"}])
    gone = {"audio": "x" * 300, "text": "its name is too long"}
    table(tmp_path / "train.csv", [gone, {"audio": "gone.wav", "text": "not there"}])
    settings = own(tmp_path, test=["dev.csv"], faulty="leave_out")
    with pytest.raises(DataError, match="no utterances are left for train"):
        run(settings, job(tmp_path / "job"))


def faulty(folder: Path) -> Path:
    """A table with one line for each thing that can be wrong."""
    good = noise(folder / "good.wav")
    (folder / "again.wav").write_bytes(good.read_bytes())
    noise(folder / "silent.wav", level=0.0)
    noise(folder / "clipped.wav", level=2.0)
    noise(folder / "short.wav", seconds=0.4)
    noise(folder / "low.wav", rate=8000)
    (folder / "cut.wav").write_bytes(good.read_bytes()[:9000])
    (folder / "text.wav").write_text("no audio")
    names = ["good", "again", "silent", "clipped", "short", "low", "cut", "text", "gone", "mute"]
    noise(folder / "mute.wav", seconds=1.1)
    said = {"mute": ""}
    text = "what was said here"
    rows = [{"audio": f"{name}.wav", "text": said.get(name, text)} for name in names]
    return table(folder / "train.csv", rows)


def test_what_is_wrong_with_a_recording_is_named_by_its_line(tmp_path: Path) -> None:
    checked = check_table(read_table(faulty(tmp_path), Columns(), tmp_path), {}, "train")
    said = {place.rpartition(":")[2]: finding.said for place, finding in checked.findings}
    assert list(said) == ["3", "4", "5", "6", "7", "8", "9", "10", "11"]
    assert said["3"] == f"doubled: the same audio as {tmp_path}/train.csv:2"
    assert said["4"].startswith("silent: ")
    assert said["5"].startswith("clipped: ")
    assert said["6"] == "too short for its text: 15 characters in 0.40 s"
    assert said["7"].startswith("wrong rate: 8,000 Hz has nothing above 4,000 Hz")
    assert said["8"].startswith("unreadable: ") and "truncated" in said["8"]
    assert said["9"].startswith("unreadable: ")
    assert said["10"] == f"missing: no file {tmp_path}/gone.wav"
    assert said["11"] == "without a text"
    assert [each.id for each in checked.utterances] == ["good", "clipped", "low"]
    assert checked.utterances[0].duration == 1.0


def test_a_sound_recording_of_any_format_has_no_finding(tmp_path: Path) -> None:
    for suffix in (".flac", ".ogg", ".mp3", ".wav", ".aiff"):
        heard = listen(noise(tmp_path / f"a{suffix}"))
        assert judge(heard, "some words") == [], suffix
        assert heard.seconds == pytest.approx(1.0, abs=0.1)


def own(folder: Path, **changes: Any) -> Settings:
    return Settings(source="table", folder=folder, train=["train.csv"], dev=["dev.csv"], **changes)


def test_a_corpus_with_faults_is_refused_with_its_lines_or_goes_on_without_them(
    tmp_path: Path,
) -> None:
    faulty(tmp_path)
    noise(tmp_path / "dev one.wav", seconds=1.3)
    rows = [{"audio": "dev one.wav", "text": "a dev text"}, {"audio": "good.wav", "text": "x"}]
    table(tmp_path / "dev.csv", rows[:1])
    given = {"test": ["dev.csv"]}
    with pytest.raises(DataError) as caught:
        run(own(tmp_path, **given), job(tmp_path / "job"))
    counts = "2 unreadable, 1 doubled, 1 silent, 1 too short, 1 missing, 1 without a text"
    assert str(caught.value).startswith(f"{counts}: mend these, or write faulty: leave_out; all")
    assert "train.csv:10: missing" in str(caught.value)
    assert "clipped" not in str(caught.value)

    result = run(own(tmp_path, **given, faulty="leave_out"), job(tmp_path / "job"))
    assert [each.id for each in read_manifest(result.train)] == ["good", "clipped", "low"]
    report = (tmp_path / "job" / "corpus_check.txt").read_text()
    assert "train.csv:5: clipped" in report and report.count("\n") == 9

    table(tmp_path / "dev.csv", rows)
    with pytest.raises(DataError, match=r"doubled: the same audio as .*\.csv:\d"):
        run(own(tmp_path, **given), job(tmp_path / "job"))


def test_paths_begin_at_the_folder_of_the_audio_as_in_common_voice(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a", "b", "c"):
        noise(tmp_path / "clips" / f"{name}.mp3", seconds=1 + len(name) * 0.1 + ord(name) / 1000)
        row = {"client_id": name, "path": f"{name}.mp3", "sentence": "was gesagt wird"}
        table(tmp_path / f"{name}.tsv", [row])
    given = {
        "source": "table", "folder": tmp_path, "train": ["a.tsv"], "dev": ["b.tsv"],
        "test": ["c.tsv"], "columns": Columns(audio="path", text="sentence", speaker="client_id"),
    }  # fmt: skip
    result = run(Settings(**given, audio_folder="clips"), job(tmp_path / "job"))
    (heard,) = read_manifest(result.train)
    assert (heard.id, heard.audio, heard.speaker) == ("a", tmp_path / "clips" / "a.mp3", "a")
    with pytest.raises(DataError, match=r"a\.tsv: there is no folder .*/clip, where its paths"):
        run(Settings(**given, audio_folder="clip"), job(tmp_path / "job"))
    with pytest.raises(ValueError, match="`audio_folder` goes with source: table"):
        Settings(source="folder", folder=tmp_path, train=["a"], dev=["b"], audio_folder="x")


def talk(path: Path, seconds: float = 6.0) -> Path:
    """Two channels of noise, a recording of more than one utterance."""
    samples = np.random.default_rng(0).normal(0, 0.1, (int(seconds * RATE), 2))
    soundfile.write(path, np.clip(samples, -1, 1), RATE)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_line_with_an_offset_is_a_part_of_its_recording(tmp_path: Path, suffix: str) -> None:
    """NeMo's manifests have offset and duration, others start and end."""
    talk(tmp_path / "talk.wav")
    nemo = {"audio_filepath": "talk.wav", "offset": 1.5, "duration": 2.25, "text": "one"}
    columns = Columns(audio="audio_filepath")
    path = table(tmp_path / f"nemo{suffix}", [nemo, {**nemo, "offset": 0, "text": "two"}])
    checked = check_table(read_table(path, columns, tmp_path), {}, "t")
    assert checked.findings == []
    assert [(each.id, each.offset, each.duration) for each in checked.utterances] == [
        ("talk-0000150-0000375", 1.5, 2.25),
        ("talk-0000000-0000225", 0.0, 2.25),
    ]
    ours = {"audio": "talk.wav", "start": 2.0, "end": 3.5, "channel": "B", "text": "three"}
    path = table(tmp_path / f"ours{suffix}", [ours, {**ours, "channel": 0, "end": ""}])
    checked = check_table(read_table(path, Columns(), tmp_path), {}, "t")
    assert [(u.id, u.offset, u.duration, u.channel) for u in checked.utterances] == [
        ("talk-1-0000200-0000350", 2.0, 1.5, 1),
        ("talk-0-0000200", 2.0, 4.0, 0),
    ]
    named = Columns(offset="from", end="to")
    path = table(tmp_path / f"named{suffix}", [{"audio": "a", "text": "x", "from": 1, "to": 2.5}])
    assert read_table(path, named, tmp_path)[0][-3:] == (1.0, 1.5, None)
    with pytest.raises(DataError, match=r"no column 'from'; .*: write columns: \{offset: \.\.\."):
        read_table(
            tmp_path / f"nemo{suffix}", Columns(audio="audio_filepath", offset="from"), tmp_path
        )
    with pytest.raises(DataError, match=r"no column 'until'; .*: write columns: \{end: \.\.\."):
        read_table(path, Columns(offset="from", end="until"), tmp_path)
    with pytest.raises(DataError, match=r"'from' says where utterances begin, and none where they"):
        read_table(path, Columns(offset="from"), tmp_path)
    path = table(tmp_path / f"whole{suffix}", [{"audio": "a", "text": "x", "duration": "3:21"}])
    assert read_table(path, Columns(), tmp_path)[0][-3:] == (None, None, None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"offset": "1:30"}, "'1:30' in the column 'offset' is no number of seconds"),
        ({"offset": -1}, "in the column 'offset' is no number of seconds"),
        ({"offset": "nan"}, "'nan' in the column 'offset' is no number of seconds"),
        ({"offset": 3, "end": 3}, "a part of 0 s, from 3 s on"),
        ({"offset": 3, "end": "x"}, "'x' in the column 'end' is no number of seconds"),
        ({"offset": 3, "duration": 0}, "a part of 0 s, from 3 s on"),
        ({"channel": "TED"}, "'TED' in the column 'channel' is no channel of a recording, such as"),
        ({"channel": 1024}, "is no channel of a recording"),
    ],
)
def test_a_part_that_cannot_be_is_named_by_its_line(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    good = {"audio": "a.wav", "text": "x", "end": ""} | dict.fromkeys(more, "")
    path = table(tmp_path / "t.csv", [good, {**good, **more}])
    with pytest.raises(DataError) as caught:
        read_table(path, Columns(), tmp_path)
    assert str(caught.value).startswith(f"{path}:3: ") and said in str(caught.value)


def test_a_part_is_judged_by_itself(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (6 * RATE, 2))
    samples[: 2 * RATE, 1] = 0
    soundfile.write(tmp_path / "talk.wav", np.clip(samples, -1, 1), RATE)
    part = {"audio": "talk.wav", "text": "what was said", "channel": 1}
    rows = [
        {**part, "start": 0, "end": 2},
        {**part, "start": 2, "end": 2.2},
        {**part, "start": 3, "end": 4},
        {**part, "start": 3, "end": 4},
        {**part, "start": 5, "end": 6.5},
        {**part, "start": 6, "end": ""},
        {**part, "start": 4, "end": 5, "channel": 2},
        {**part, "start": 5, "end": 6.05},
    ]
    path = table(tmp_path / "t.csv", rows)
    checked = check_table(read_table(path, Columns(), tmp_path), {}, "t")
    assert [(place[-1], finding.said) for place, finding in checked.findings] == [
        ("2", "silent: no sample above 0.001 of full scale"),
        ("3", "too short for its text: 11 characters in 0.20 s"),
        ("5", f"doubled: the same audio as {path}:4"),
        ("6", f"beyond the end: {tmp_path}/talk.wav has 6.00 s, and not the part up to 6.5 s"),
        ("7", f"beyond the end: {tmp_path}/talk.wav has 6.00 s, and not the part from 6 s on"),
        ("8", f"unreadable: {tmp_path}/talk.wav: no channel 2 in 2: 0 is the first"),
    ]
    assert [each.duration for each in checked.utterances] == [1.0, 1.0]


def test_a_recording_that_has_changed_is_listened_to_anew(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.wav")
    assert isinstance(listen(path), Heard)
    data = bytearray(path.read_bytes())
    data[4:8] = (2 * len(data)).to_bytes(4, "little")  # as much is promised
    path.write_bytes(data)
    os.utime(path, (1, 1))
    found = listen(path)
    assert isinstance(found, Finding) and "truncated" in found.said


def test_what_is_learned_from_is_the_part(tmp_path: Path) -> None:
    """Through the manifest, and from a copy on the node's own disk."""
    path = talk(tmp_path / "talk.wav")
    whole, _ = soundfile.read(path, dtype="float32")
    rows = [
        {"audio": "talk.wav", "start": at, "end": at + 1.5, "channel": at % 2, "text": "so it is"}
        for at in range(5)
    ]
    table(tmp_path / "all.csv", rows)
    given = {"source": "table", "folder": tmp_path, "holdout_speakers": 1, "train": ["all.csv"]}
    with pytest.raises(
        DataError, match=r"no utterance has a speaker, .* holds out speakers: write who "
    ):
        run(Settings(**given), job(tmp_path / "job"))
    rows = [{**row, "speaker": number} for number, row in enumerate(rows)]
    table(tmp_path / "all.csv", [{key: str(value) for key, value in row.items()} for row in rows])
    result = run(Settings(**given), job(tmp_path / "job"))
    heard = [
        each for part in (result.train, result.dev, result.test) for each in read_manifest(part)
    ]
    assert {each.offset for each in heard} == {0, 1, 2, 3, 4}
    for utterances in (heard, stage_files(heard, tmp_path / "staged")):
        corpus = whole_corpus(utterances, Vocabulary.characters())
        for index, each in enumerate(utterances):
            begin = round(each.offset * RATE)
            expected = whole[begin : begin + round(1.5 * RATE), each.channel]
            assert np.array_equal(read(corpus, index), expected)
    moved = [replace(each, offset=each.offset / 2) for each in heard]
    assert whole_corpus(moved, Vocabulary.characters()).fingerprint() != corpus.fingerprint()
    with soundfile.SoundFile(path, "r+") as file:
        file.truncate(3 * RATE)
    batch = Reader(whole_corpus(heard, Vocabulary.characters()))[range(5)]
    assert sorted(name for name, _ in batch.unreadable) == sorted(
        each.id for each in heard if each.offset > 1
    )
    assert dict(batch.unreadable)["talk-0-0000200-0000350"] == (
        f"{path} has 1.00 s of audio from 2 s on, its manifest says 1.50 s: the file is cut off, "
        "or the manifest is older than the file"
    )


def test_a_name_is_found_however_its_letters_and_folders_are_written(tmp_path: Path) -> None:
    """A Mac writes ä as a and a mark, where a table has mostly one letter; Windows backslashes."""
    apart = "a\u0308.wav"
    (tmp_path / "clips").mkdir()
    noise(tmp_path / apart)
    noise(tmp_path / "clips" / "b1.wav", seconds=1.1)
    rows = [{"audio": "\u00e4.wav", "text": "x"}, {"audio": "clips\\b1.wav", "text": "y"}]
    checked = check_table(read_table(table(tmp_path / "t.csv", rows), Columns(), tmp_path), {}, "t")
    assert [each.audio for each in checked.utterances] == [
        tmp_path / apart,
        tmp_path / "clips" / "b1.wav",
    ]
    assert checked.findings == []


def test_speech_of_espeak_in_another_language_is_a_corpus(tmp_path: Path) -> None:
    manifest = speak(tmp_path, "german")
    rows = [
        {"audio": str(each.audio), "text": each.text, "speaker": str(number % 3)}
        for number, each in enumerate(read_manifest(manifest))
    ]
    table(tmp_path / "all.tsv", rows)
    settings = Settings(source="table", folder=tmp_path, train=["all.tsv"], holdout_speakers=1)
    result = run(settings, job(tmp_path / "job"))
    found = [
        each.text
        for part in (result.train, result.dev, result.test)
        for each in read_manifest(part)
    ]
    assert sorted(found) == sorted(SAID["german"].texts)
