"""Folders in LibriSpeech layout: complete, or everything that is wrong with them by name."""

import json
from pathlib import Path

import pytest

from lact_asr.data.librispeech import hold_out, scan
from lact_asr.data.manifest import Utterance
from lact_asr.utils.errors import DataError
from tests.lact_asr.data.noise_corpus import chapter, recording, subset_folder


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        scan(folder)
    return [line.removeprefix(f"{folder}/") for line in str(error.value).splitlines()]


def test_real_speech_is_what_its_own_manifest_says(real_speech: Path) -> None:
    known = [json.loads(line) for line in (real_speech / "manifest.jsonl").read_text().splitlines()]
    for subset, count in {"train": 168, "dev": 39, "extra": 50}.items():
        found = {each.id: each for each in scan(real_speech / subset)}
        assert len(found) == count
        for record in (each for each in known if each["subset"] == subset):
            utterance = found[record["id"]]
            assert utterance.audio == real_speech / record["audio_filepath"]
            assert utterance.duration == pytest.approx(record["duration"], abs=1e-3)
            assert (utterance.text, utterance.speaker) == (record["text"], record["speaker"])


def test_utterances_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    found = scan(subset_folder(tmp_path, speakers=3, utterances=2))
    assert [each.id for each in found] == sorted(each.id for each in found)
    assert found[0] == Utterance(
        "1-7-0000", tmp_path / "1/7/1-7-0000.flac", 0.5, "THE TEXT OF 1 7 0000", "1"
    )


@pytest.mark.parametrize(
    ("place", "speaker"),
    [
        ("84/7/84-7-0000", "84"),
        ("dev-clean/84/7/84-7-0000", "84"),
        ("anna/2020/talk_17", "anna"),
        ("anna/2020-05-03-talk", "anna"),
        ("p225/p225_001", "p225"),
        ("bert-17", "bert"),
    ],
)
def test_the_speaker_is_in_the_id_or_the_first_folder(
    tmp_path: Path, place: str, speaker: str
) -> None:
    """No id is a speaker of its own: held out, the same voice would be in train, too."""
    path = recording(tmp_path / f"{place}.flac")
    (path.parent / "a.trans.txt").write_text(f"{path.stem} SO IT IS\n")
    assert [each.speaker for each in scan(tmp_path)] == [speaker]


def test_everything_wrong_is_reported_at_once_by_name(tmp_path: Path) -> None:
    transcript = chapter(tmp_path, speaker=1, utterances=4)
    place = transcript.parent
    (place / "1-7-0001.flac").unlink()  # a line without audio
    recording(place / "1-7-0009.wav")  # audio without a line
    data = (place / "1-7-0002.flac").read_bytes()
    (place / "1-7-0002.flac").write_bytes(data[:-200])  # truncated
    recording(place / "1-7-0003.wav")  # twice the same recording
    with transcript.open("a") as file:
        file.write("1-7-0000 AGAIN\n\n1-7-0008\n")
    found = mistakes(tmp_path)
    assert found[:6] == [
        f"{place}/1-7-0003.wav: 1-7-0003.flac is the same recording".removeprefix(f"{tmp_path}/"),
        "1/7/1-7.trans.txt:2: no audio file for 1-7-0001 beside this transcript",
        "1/7/1-7.trans.txt:5: a second line for 1-7-0000",
        "1/7/1-7.trans.txt:7: 1-7-0008 has no text",
        "1/7/1-7.trans.txt:7: no audio file for 1-7-0008 beside this transcript",
        "1/7/1-7-0009.wav: no transcript",
    ]
    assert found[6].startswith("1/7/1-7-0002.flac: truncated")
    assert len(found) == 7


def test_the_same_id_in_two_folders_is_a_mistake(tmp_path: Path) -> None:
    chapter(tmp_path / "a", 1, 1)
    chapter(tmp_path / "b", 1, 1)
    assert "has the same id" in mistakes(tmp_path)[0]


def test_a_missing_and_an_empty_folder_are_clear_errors(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "none")[-1].endswith("none: no such folder")
    (tmp_path / "empty").mkdir()
    assert "no transcripts (expected <speaker>" in mistakes(tmp_path / "empty")[0]


def test_a_linked_corpus_is_followed(tmp_path: Path) -> None:
    chapter(tmp_path / "real", 1, 2)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "1").symlink_to(tmp_path / "real" / "1")
    assert len(scan(tmp_path / "linked")) == 2


def test_what_a_mac_leaves_beside_each_file_and_older_versions_are_no_part_of_it(
    tmp_path: Path,
) -> None:
    transcript = chapter(tmp_path, 1, 2)
    known = scan(tmp_path)
    for path in [*transcript.parent.iterdir(), transcript.parent]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X \xff\xb0")
    chapter(tmp_path / ".snapshot" / "hourly.0", 1, 2)
    assert scan(tmp_path) == known


def test_a_mark_in_front_of_a_text_and_capital_suffixes_are_read(tmp_path: Path) -> None:
    transcript = chapter(tmp_path, 1, 2)
    transcript.write_bytes(b"\xef\xbb\xbf" + transcript.read_bytes().replace(b"\n", b"\r\n"))
    (transcript.parent / "1-7-0001.flac").rename(transcript.parent / "1-7-0001.FLAC")
    assert [each.text for each in scan(tmp_path)] == [
        "THE TEXT OF 1 7 0000",
        "THE TEXT OF 1 7 0001",
    ]


def speakers(utterances: list[Utterance]) -> set[str]:
    return {each.speaker for each in utterances}


def test_held_out_speakers_are_heard_nowhere_else(speech: Path) -> None:
    everyone = scan(speech / "train")
    dev, test, train = hold_out(everyone, 2, 2)
    assert [len(speakers(part)) for part in (dev, test, train)] == [2, 2, 4]
    assert speakers(dev) | speakers(test) | speakers(train) == speakers(everyone)
    assert sorted((*dev, *test, *train), key=lambda each: each.id) == everyone


def test_the_same_speakers_are_held_out_every_time(speech: Path) -> None:
    everyone = scan(speech / "train")
    for order in (everyone, everyone[::-1]):
        assert speakers(hold_out(order, 3, 1)[0]) == {"3", "4", "8"}


def test_holding_out_everyone_is_refused(tmp_path: Path) -> None:
    everyone = scan(subset_folder(tmp_path, speakers=4, utterances=1))
    with pytest.raises(DataError, match="holding out 2 x 2 speakers leaves none of 4"):
        hold_out(everyone, 2, 2)
