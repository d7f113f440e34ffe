"""Manifests: what is written is what is read, and every bad line is named."""

import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lact_asr.data.manifest import Utterance, read_manifest, write_manifest
from lact_asr.utils.errors import DataError

GOOD = {"id": "a", "audio": "a.flac", "duration": 1.5, "text": "GO", "speaker": "84"}


def lines(path: Path, *records: object) -> Path:
    written = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("\n".join(written) + "\n")
    return path


@given(
    text=some.text(some.characters(codec="utf-8")),
    duration=some.floats(1e-3, 1e5),
    name=some.text(some.characters(codec="utf-8"), min_size=1),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, duration: float, name: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "round"
    given = [Utterance(name, root / "LibriSpeech" / "a.flac", round(duration, 6), text, "84")]
    write_manifest(root / "manifests" / "a.jsonl", given)
    assert read_manifest(root / "manifests" / "a.jsonl") == given


def test_audio_under_the_data_root_moves_with_it_and_other_audio_stays(tmp_path: Path) -> None:
    inside, outside = tmp_path / "root/LibriSpeech/a.flac", tmp_path / "elsewhere/b.flac"
    utterances = [Utterance("a", inside, 1.0, "A", "1"), Utterance("b", outside, 1.0, "B", "1")]
    write_manifest(tmp_path / "root/manifests/x.jsonl", utterances)
    shutil.move(tmp_path / "root", tmp_path / "moved")
    read = read_manifest(tmp_path / "moved/manifests/x.jsonl")
    assert [each.audio for each in read] == [tmp_path / "moved/LibriSpeech/a.flac", outside]


def test_every_bad_line_is_named_with_its_number_and_what_is_wrong(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "bad.jsonl",
        GOOD,
        "{not json",
        {**GOOD, "id": "b", "duration": -1},
        {**GOOD, "id": "c", "duration": True},
        {**GOOD, "id": 4},
        {key: value for key, value in GOOD.items() if key != "text"},
        [],
        GOOD,
        '{"id": "d", "audio": "d", "duration": NaN, "text": "", "speaker": ""}',
        {**GOOD, "id": "e", "offset": -3.5},
        {"audio_filepath": "a.flac", "duration": 1.5, "text": "GO"},
        {**GOOD, "id": "f", "offset": "0"},
        {**GOOD, "id": "g", "offset": 1.0, "video": "a.npy"},
        {**GOOD, "id": "h", "channel": True},
        {**GOOD, "id": "i", "channel": 5000},
        {**GOOD, "id": "j", "duration": 10**400},
        {**GOOD, "id": "k", "offset": math.inf},
        {**GOOD, "id": "l", "offset": 0, "channel": 1},
    )
    with pytest.raises(DataError) as error:
        read_manifest(path)
    found = str(error.value).splitlines()
    assert [int(line.split(":")[1]) for line in found] == [*range(2, 18)]
    for line, part in zip(
        found,
        [
            "not JSON at column 2",
            "'duration' must be a number of seconds above 0, found -1",
            "found True",
            "'id' must be a string, found 4",
            "'text' must be a string, found None",
            "expected a JSON object",
            "a second utterance with the id 'a'",
            "found nan",
            "'offset' must be a number of seconds from 0 on, found -3.5",
            "a line of NeMo's: read the file in a step of kind download, with source: table",
            "'offset' must be a number of seconds from 0 on, found '0'",
            "'offset' is for utterances without a video",
            "'channel' must be a whole number from 0 on, found True",
            "found 5000",
            "'duration' must be a number of seconds above 0, found 1000",
            "'offset' must be a number of seconds from 0 on, found inf",
        ],
        strict=True,
    ):
        assert part in line


def test_of_very_many_bad_lines_twenty_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.\.\. and 80 more") as error:
        read_manifest(lines(tmp_path / "bad.jsonl", *["x"] * 100))
    assert len(str(error.value).splitlines()) == 21


@pytest.mark.parametrize("content", [None, "", "\n\n", b"\xff\xfe"])
def test_a_missing_empty_or_binary_manifest_is_a_clear_error(
    tmp_path: Path, content: str | bytes | None
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"a\.jsonl"):
        read_manifest(path)


def test_a_part_of_a_recording_keeps_its_place_and_its_channel(tmp_path: Path) -> None:
    audio = tmp_path / "data" / "a.flac"
    given = [
        Utterance("a", audio, 2.5, "A", "1", offset=0.0),
        Utterance("b", audio, 1.25, "B", "2", offset=2.5, channel=1),
        Utterance("c", audio, 9.0, "C", "2", channel=0),
    ]
    write_manifest(tmp_path / "manifests" / "x.jsonl", given)
    assert read_manifest(tmp_path / "manifests" / "x.jsonl") == given
