"""Audio: the right samples at 16 kHz, the right durations, damage named."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.data.audio import duration, read_audio, read_samples, resample
from lact_asr.data.mp3 import count_seconds
from lact_asr.utils.errors import DataError
from tests.conftest import shared
from tests.lact_asr.data.noise_corpus import recording


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".opus", ".ogg"])
def test_every_format_gives_float32_at_16_khz(tmp_path: Path, suffix: str) -> None:
    path = recording(tmp_path / f"a{suffix}", seconds=1.25)
    samples = read_audio(path)
    assert samples.dtype == np.float32 and samples.shape == (20_000,)
    assert duration(path) == 1.25


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = np.full(1600, 0.5), np.full(1600, -0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, "FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav"), 0.125)


def test_another_rate_is_resampled_and_the_duration_stays(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.wav", seconds=1.0, rate=22_050)
    assert read_audio(path).shape == (16_000,)
    assert duration(path) == 1.0


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000])
def test_resampling_is_that_of_torchaudio(rate: int) -> None:
    torch = pytest.importorskip("torch")
    from torchaudio.functional import resample as theirs

    samples = np.random.default_rng(rate).standard_normal(12_345)
    expected = theirs(torch.from_numpy(samples), rate, 16_000).numpy()
    assert np.abs(resample(samples, rate) - expected).max() < 1e-9
    assert resample(samples.astype(np.float32), rate).dtype == np.float32


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".opus", ".WAV"])
@pytest.mark.parametrize("keep", [0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = recording(tmp_path / f"cut{suffix}", seconds=3.0)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=f"cut{suffix}"):
        duration(path)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_F024, 0])
def test_a_wav_file_that_came_through_a_pipe_is_whole(tmp_path: Path, size: int) -> None:
    """sox and ffmpeg cannot go back to write its length."""
    path = recording(tmp_path / "a.wav", seconds=2.0)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[4:8] = size.to_bytes(4, "little")
    if size:
        data[place : place + 4] = (size - 36).to_bytes(4, "little")
    path.write_bytes(data)
    assert duration(path) == 2.0 and len(read_audio(path)) == 32_000


def test_a_flac_file_without_a_length_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As ffmpeg and sox write it into a pipe."""
    path = recording(tmp_path / "a.flac", seconds=2.0)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the last 36 bits of these are the number of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    for read in (read_audio, duration):
        with pytest.raises(DataError, match=r"a\.flac: its header does not say how long it is"):
            read(path)


@pytest.mark.parametrize("kind", ["FLAC", "NIST", "RF64", "OGG"])
def test_a_file_is_judged_by_what_is_in_it_and_not_by_its_name(tmp_path: Path, kind: str) -> None:
    """TIMIT's .WAV files are NIST's SPHERE."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000)
    soundfile.write(path := tmp_path / "a.WAV", samples, 16_000, format=kind)
    assert duration(path) == 1.0
    if kind != "NIST":
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(DataError, match="truncated"):
            duration(path)


def test_an_mp3_file_that_is_cut_is_named_and_a_whole_one_is_as_long_as_it_is(
    tmp_path: Path,
) -> None:
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 160_000)
    even = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
    soundfile.write(path := tmp_path / "a.mp3", samples, 16_000, **even)
    whole = path.read_bytes()
    assert duration(path) == 10.0
    untitled = whole[whole.index(b"\xff\xf3", 4) :]  # without the first frame, which has the length
    path.write_bytes(b"ID3\3\0\0\0\0\0\x0a" + bytes(10) + untitled)
    assert abs(duration(path) - 10.0) < 0.1
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.mp3: truncated \(the file ends before"):
        duration(path)


def quiet_then_loud(path: Path, rate: int = 16_000, **kind: object) -> bytes:
    """12 s of MP3 of a variable rate."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 12 * rate)
    noise[: 4 * rate] /= 1000
    soundfile.write(path, noise, rate, bitrate_mode="VARIABLE", **kind)
    return path.read_bytes()


@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000])
def test_all_frames_of_an_mp3_file_are_counted(tmp_path: Path, rate: int) -> None:
    whole = quiet_then_loud(tmp_path / "a.mp3", rate)
    assert 0 <= count_seconds(whole) - duration(tmp_path / "a.mp3") < 4 * 1152 / rate
    tag = b"ID3\3\0\0\0\0\1\0" + whole[:128]  # a tag's bytes are no frames, whatever they are
    twice = count_seconds(tag + whole + b"TAG" + bytes(125) + tag + whole)
    assert twice == pytest.approx(2 * count_seconds(whole))


def test_what_looks_like_frames_is_none_inside_a_tag_or_at_another_rate(tmp_path: Path) -> None:
    whole = quiet_then_loud(tmp_path / "a.mp3")
    alike, other = b"\xff\xf3\x18\xc4" + bytes(32), b"\xff\xf3\x14\xc4" + bytes(20)  # 8 kbit/s
    assert count_seconds(alike * 64) == 64 * 576 / 16_000
    assert count_seconds(other * 64) == 64 * 576 / 24_000
    tag = b"ID3\3\0\0\0\0\x12\0" + alike * 64
    assert count_seconds(tag + whole) == count_seconds(whole)
    assert count_seconds(whole + other * 64) == count_seconds(whole)


@pytest.mark.parametrize("fault", ["no header", "joined"])
def test_an_mp3_file_of_which_a_part_would_be_heard_is_named(tmp_path: Path, fault: str) -> None:
    """libsndfile 1.2 hears 5.7 s and 12 s of them, without a word."""
    whole = quiet_then_loud(tmp_path / "a.mp3")
    begin = whole.index(whole[:2], 4)  # of the second frame: the first one has the length
    (tmp_path / "b.mp3").write_bytes(whole[begin:] if fault == "no header" else whole * 2)
    said = (
        r"b\.mp3: (12|24)\.\d s of MP3, of which only (5\.7|12\.0) would be heard .*write it anew"
    )
    with pytest.raises(DataError, match=said):
        duration(tmp_path / "b.mp3")


FORMATS = [
    ("FLAC", None), ("WAV", None), ("WAV", "ULAW"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("NIST", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("rate", [8_000, 24_000])
def test_a_part_of_a_recording_is_what_is_there_in_the_whole(
    tmp_path: Path, kind: str, subtype: str | None, rate: int
) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "a.audio"
    soundfile.write(path, random.uniform(-0.3, 0.3, 9 * rate), rate, subtype, format=kind)
    whole, _ = read_samples(path)
    for start in [0, 1, rate // 50, 8 * rate, *random.integers(0, 8 * rate, 30).tolist()]:
        seconds = float(random.uniform(0.01, 1))
        part, found = read_samples(path, start / rate, seconds)
        count = min(round(seconds * rate), len(whole) - start)
        assert found == rate and part.shape == (count, 1)
        assert np.abs(part - whole[start : start + count]).max() < 1e-6
    rest, _ = read_samples(path, 8.5)
    assert len(rest) == len(whole) - round(8.5 * rate)
    assert np.array_equal(read_samples(path, 8.5, 1e9)[0], rest)
    assert len(read_audio(path, 2.0, 1.5)) == 24_000
    with pytest.raises(DataError, match=r"a\.audio has no samples from 20 s on"):
        read_audio(path, 20.0, 1.0)


def test_a_channel_is_heard_alone(tmp_path: Path) -> None:
    left, right = np.full(1600, 0.5), np.full(1600, -0.25)
    soundfile.write(path := tmp_path / "a.wav", np.stack([left, right], 1), 16_000, "FLOAT")
    assert np.allclose(read_audio(path, channel=0), 0.5)
    assert np.allclose(read_audio(path, 0.05, 0.01, channel=1), -0.25)
    with pytest.raises(DataError, match=r"a\.wav: no channel 2 in 2: 0 is the first"):
        read_audio(path, channel=2)


@given(st.binary(max_size=400), st.binary(max_size=40))
def test_the_frames_of_anything_can_be_counted(noise: bytes, more: bytes) -> None:
    assert 0 <= count_seconds(noise) < 1000
    assert count_seconds(b"\xff\xf3\x88\xc4" + noise + b"\xff\xf3" + more) > 0


def test_a_file_of_a_mac_that_keeps_a_recording_from_being_read_is_named(tmp_path: Path) -> None:
    """libsndfile 1.2 takes ._NAME for a part of NAME, where it does not know NAME at once."""
    soundfile.write(path := tmp_path / "a.mp3", [0.1] * 8000, 16_000)
    assert duration(path) == 0.5
    (tmp_path / "._a.mp3").write_bytes(bytes.fromhex("0005160700020000") + b"Mac OS X        ")
    for read in (read_audio, duration):
        with pytest.raises(DataError, match=rf"remove {tmp_path}/\._a\.mp3, which a Mac has left"):
            read(path)


@pytest.mark.parametrize("content", [None, b"", b"this is no audio" * 100])
def test_what_is_no_audio_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "no.flac"
    if content is not None:
        path.write_bytes(content)
    for read in (read_audio, duration):
        with pytest.raises(DataError, match=r"no\.flac"):
            read(path)


def test_what_the_file_system_has_against_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "link.flac").symlink_to(tmp_path / "gone.flac")
    (tmp_path / "folder.flac").mkdir()
    said = {"link.flac": "No such file or directory", "folder.flac": "Is a directory"}
    for name, words in said.items():
        for read in (read_audio, duration):
            with pytest.raises(DataError) as error:
                read(tmp_path / name)
            assert str(error.value) == f"cannot read the audio file {tmp_path / name}: {words}"


def test_a_file_without_samples_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    for read in (read_audio, duration):
        with pytest.raises(DataError, match=r"empty\.wav"):
            read(tmp_path / "empty.wav")


def test_real_speech_in_flac_and_opus_has_the_length_its_header_says() -> None:
    flac = shared("data/speech/train").rglob("*.flac")
    opus = shared("data/mini_librispeech/train-clean-5").rglob("*.opus")
    for path in [*sorted(flac)[:20], *sorted(opus)[:20]]:
        assert len(read_audio(path)) == round(duration(path) * 16_000)
