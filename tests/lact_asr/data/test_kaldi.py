"""Data directories of Kaldi: recordings, commands that decode them, segments, and what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from jobs.kinds.download import Settings, run
from lact_asr.data.kaldi import Source, read_kaldi, source
from lact_asr.data.manifest import read_manifest
from lact_asr.utils.errors import DataError
from tests.jobs.kinds.test_download import job

RATE = 8_000


def data(folder: Path, **files: str) -> Path:
    """A data directory with these files; `wav_scp` is wav.scp."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def call(path: Path, seconds: float = 6.0) -> Path:
    """Two people on the telephone, each in a channel of their own."""
    samples = np.random.default_rng(int(path.stem)).uniform(-0.3, 0.3, (int(seconds * RATE), 2))
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, samples, RATE, format="NIST")
    return path


def test_utterances_are_segments_of_recordings_or_recordings(tmp_path: Path) -> None:
    whole = data(
        tmp_path / "data" / "whole",
        wav_scp="b  audio/b.wav\na\taudio/a b.wav\n\n",
        text="a GUTEN  TAG\nb ÄPFEL\n",
        utt2spk="a anna\nb bert\n",
    )
    rows = read_kaldi(whole, tmp_path)
    assert [row[:5] for row in rows] == [
        (f"{whole}/wav.scp:1", "b", tmp_path / "audio" / "b.wav", "ÄPFEL", "bert"),
        (f"{whole}/wav.scp:2", "a", tmp_path / "audio" / "a b.wav", "GUTEN  TAG", "anna"),
    ]
    assert {row[5:] for row in rows} == {(None, None, None)}
    parts = data(
        tmp_path / "data" / "parts",
        wav_scp="r-1 sph2pipe -f wav -p -c 2 /corpus/r.sph |\n",
        segments="u1 r-1 0.50 2.25\nu2 r-1 3 -1\n",
        text="u1 ONE\nu2\n",
    )
    assert [row[1:] for row in read_kaldi(parts, tmp_path)] == [
        ("u1", Path("/corpus/r.sph"), "ONE", "", 0.5, 1.75, 1),
        ("u2", Path("/corpus/r.sph"), "", "", 3.0, None, 1),
    ]


@pytest.mark.parametrize(
    ("given", "file", "channel"),
    [
        ("a.wav", "a.wav", None),
        ("flac -c -d -s a.flac |", "a.flac", None),
        ("/opt/bin/flac -cds 'a b.flac'|", "a b.flac", None),
        ("sph2pipe -f wav a.sph |", "a.sph", None),
        ("sph2pipe -f wav -p -c 1 a.sph |", "a.sph", 0),
        ("sox a.wav -t wav - |", "a.wav", None),
        ("sox -G a.mp3 -r 16k -b 16 -t wav - remix 2 |", "a.mp3", 1),
        ("sox -c 1 -t wavpcm -e signed-integer a.wav -t wavpcm - |", "a.wav", None),
        ("sox a.wav -t wav - rate 16k |", "a.wav", None),
        ("ffmpeg -i a.mp3 -f wav -ar 16000 -ab 16 -ac 1 - |", "a.mp3", None),
        ("ffmpeg -nostdin -v error -i a.mp3 -f wav pipe:1 |", "a.mp3", None),
        ("cat a.wav |", "a.wav", None),
    ],
)
def test_of_a_command_that_decodes_a_file_the_file_is_read(
    given: str, file: str, channel: int | None
) -> None:
    assert source(given) == Source(file, channel)


@pytest.mark.parametrize(
    "given",
    [
        "sox a.wav -t wav - speed 0.9 |",
        "sox -t wav - -t wav - |",
        "sox a.wav b.wav -t wav - |",
        "sox a.wav -t wav - remix 1,2 |",
        "sox a.wav -t wav - remix 0 |",
        "sox -v 0.5 a.wav -t wav - |",
        "sox a.wav -t wav - trim 3 5 |",
        "sph2pipe -f wav a.sph | sox - -r 8k -t wav - |",
        "sph2pipe -t 3:5 -f wav a.sph |",
        "sph2pipe -c 0 a.sph |",
        "ffmpeg -ss 3 -i a.mp3 -f wav - |",
        "wav-reverberate a.wav - |",
        "touch created; cat a.wav |",
        "cat |",
        "cat -n |",
        "'|",
        "|",
        "flac -cd $(touch created) |",
    ],
)
def test_any_other_command_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="is a command, and commands are not run"):
        source(given)


@given(st.text(alphabet="ab -|'\"\\c1$<>;\n", max_size=30))
def test_whatever_wav_scp_says_is_a_file_or_a_mistake(given: str) -> None:
    try:
        assert source(given).file
    except ValueError as error:
        assert "is a command" in str(error) or str(error) == "a name without a file"


def test_every_mistake_is_named_by_its_line(tmp_path: Path) -> None:
    bad = data(
        tmp_path / "bad",
        wav_scp="a a.wav\nb wav-scale x |\nc\na again.wav\n",
        segments="u1 a 1 2\nu1 a 3 4\nu2 z 1 2\nu3 a 2 1\nu4 a 1\nu5 a x y\nu6 a 1 2 3\nu7 a -1 2",
        text="u1 X\nu9 Y\n",
    )
    with pytest.raises(DataError) as caught:
        read_kaldi(bad, tmp_path)
    assert [line.removeprefix(f"{bad}/")[:42] for line in str(caught.value).splitlines()] == [
        "wav.scp:2: `wav-scale x |` is a command, a",
        "wav.scp:3: a name without a file",
        "wav.scp:4: a second recording of the name ",
        "segments:2: a second segment of the name '",
        "segments:3: wav.scp has no recording 'z'",
        *(f"segments:{line}: write UTTERANCE RECORDING STAR" for line in range(4, 9)),
        "text:2: nothing in segments has the name '",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wav.scp", None, r"cannot read .*/wav\.scp: No such file or directory"),
        ("text", None, r"cannot read .*/text: No such file or directory"),
        ("utt2spk", b"a \xe4", r"utt2spk: byte 0xe4 is not UTF-8"),
    ],
)
def test_a_directory_that_lacks_something_says_what(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    folder = data(tmp_path / "d", wav_scp="a a.wav\n", text="a A\n")
    (folder / name).write_bytes(content) if content else (folder / name).unlink()
    with pytest.raises(DataError, match=said):
        read_kaldi(folder, tmp_path)
    nothing = data(tmp_path / "e", wav_scp="\n", text="")
    with pytest.raises(DataError, match="e: no utterances in this data directory"):
        read_kaldi(nothing, tmp_path)


def test_telephone_speech_in_two_channels_is_a_corpus(tmp_path: Path) -> None:
    """As of Switchboard: each side of a call is a recording, the paths begin above the data."""
    for number in range(3):
        call(tmp_path / "audio" / f"{number}.sph")
    for part, number in (("train", 0), ("dev", 1), ("test", 2)):
        sides = {side: f"{number}-{side}" for side in "AB"}
        data(
            tmp_path / "data" / part,
            wav_scp="".join(
                f"{name} sph2pipe -f wav -p -c {'AB'.index(side) + 1} audio/{number}.sph |\n"
                for side, name in sides.items()
            ),
            segments="".join(f"{name}-1 {name} 1.0 3.5\n" for name in sides.values()),
            text="".join(f"{name}-1 hello there\n" for name in sides.values()),
            utt2spk="".join(f"{name}-1 {name}\n" for name in sides.values()),
        )
    given = {"source": "kaldi", "folder": tmp_path / "data", "audio_folder": ".."}
    names = {"train": ["train"], "dev": ["dev"], "test": ["test"]}
    result = run(Settings(**given, **names), job(tmp_path / "job"))
    assert result.utterances == 6 and result.hours == pytest.approx(15 / 3600, abs=1e-4)
    first, second = read_manifest(result.train)
    assert (first.id, first.speaker, first.offset, first.duration) == ("0-A-1", "0-A", 1.0, 2.5)
    assert (first.channel, second.channel, second.text) == (0, 1, "hello there")
    with pytest.raises(ValueError, match="source: kaldi needs `folder`"):
        Settings(source="kaldi", **names)
