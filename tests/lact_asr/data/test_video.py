"""Video beside the audio: from the manifest into batches, in step with it, nothing unsound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.loader import loader
from lact_asr.data.local_copy import stage_files
from lact_asr.data.manifest import Utterance, read_manifest, write_manifest
from lact_asr.data.speed import change_speed
from lact_asr.data.video import read_video
from lact_asr.decoding.transcribe import transcribe
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.objective import repeat_batch
from lact_asr.utils.errors import DataError
from tests.lact_asr import tiny_runs

FEATURES, FRAME = (6,), (3, 112, 112)


def filmed(folder: Path, count: int = 3) -> list[Utterance]:
    """Utterances with features that count their frames; the last one has none."""
    made = []
    for each in tiny_runs.tones(folder, count):
        frames = np.arange(round(each.duration * 25), dtype=np.float16)
        path = folder / f"{each.id}.npy"
        np.save(path, np.repeat(frames[:, None], 6, axis=1))
        made.append(replace(each, video=path))
    return [*made[:-1], replace(made[-1], video=None)]


def read(said: list[Utterance], video_shape: tuple[int, ...] | None = FEATURES) -> Batch:
    corpus = whole_corpus(said, Vocabulary.characters(), video_shape)
    return Reader(corpus)[range(len(said))]


def test_a_batch_holds_what_the_manifest_names_and_nothing_where_it_names_none(tmp_path):
    said = filmed(tmp_path)
    batch = read(said)
    lengths = [round(each.duration * 25) for each in said[:2]] + [0]
    assert batch.video_lengths.tolist() == lengths
    assert batch.video.shape == (3, max(lengths), 6) and batch.video.dtype == torch.float32
    for row, length in enumerate(lengths):
        assert batch.video[row, :length, 3].tolist() == list(range(length))
        assert not batch.video[row, length:].any()
    assert batch.to("cpu").video.equal(batch.video)
    twice = repeat_batch(batch, 2)
    assert (twice.ids, twice.texts) == (batch.ids * 2, batch.texts * 2)
    assert twice.video[3:].equal(batch.video) and twice.video_lengths.tolist() == lengths * 2
    for without in (read(said, None), read(said[2:])):
        assert without.video is None and without.video_lengths is None


def test_a_worker_puts_video_where_its_parent_sees_it(tmp_path):
    said = filmed(tmp_path)
    (helped,) = loader(
        whole_corpus(said, Vocabulary.characters(), FEATURES), [np.arange(3)], workers=1
    )
    alone = read(said)
    assert helped.video.is_shared() and helped.video.equal(alone.video)
    assert helped.video_lengths.equal(alone.video_lengths)


def test_pictures_stay_bytes(tmp_path):
    said = filmed(tmp_path, 2)
    film = np.full((round(said[0].duration * 25), *FRAME), 200, np.uint8)
    np.save(said[0].video, film)
    batch = read(said, FRAME)
    assert batch.video.dtype == torch.uint8 and batch.video.shape == (2, *film.shape)


BAD = {
    "absent": "cannot read the video file",
    "garbage": "cannot read the video file",
    "cut": "cannot read the video file",
    "objects": "cannot read the video file",
    "archive": "an archive of arrays",
    "narrow": r"has \(\d+, 5\) of float32: the model wants \(T, 6\) of float16 or float32",
    "flat": r"has \(\d+,\) of float32",
    "double": r"of float64: the model wants",
    "nan": "NaN or infinite",
    "empty": r"has 0 frames, 0.00 s at 25 a second",
    "slow": r"at 25 a second, and its audio [\d.]+ s: write it at 25 frames a second",
}


def spoil(path: Path, how: str) -> None:
    good = np.load(path).astype(np.float32)
    changed = {
        "narrow": good[:, :5], "flat": good[:, 0], "double": good.astype(np.float64),
        "nan": np.where(good == 5, np.nan, good), "empty": good[:0], "slow": good[::2],
    }  # fmt: skip
    if how in changed:
        np.save(path, changed[how])
    elif how == "objects":
        np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
    elif how == "archive":
        with path.open("wb") as file:
            np.savez(file, good)
    else:
        data = {"garbage": b"no numbers", "cut": path.read_bytes()[:-40]}
        path.write_bytes(data[how]) if how in data else path.unlink()


@pytest.mark.parametrize("how", BAD)
def test_a_bad_file_is_named_and_its_utterance_left_out(tmp_path, how):
    said = filmed(tmp_path)
    spoil(said[0].video, how)
    with pytest.raises(DataError, match=BAD[how]):
        read_video(said[0].video, FEATURES, said[0].duration)
    batch = read(said)
    assert batch.ids == [said[1].id, said[2].id] and len(batch.video) == 2
    ((identity, why),) = batch.unreadable
    assert identity == said[0].id and str(said[0].video) in why
    assert read(said, None).unreadable == [], "nobody looks"


def test_a_model_that_looks_is_not_scored_without_what_it_should_have_seen(tmp_path):
    said = filmed(tmp_path)
    spoil(said[0].video, "cut")
    model = tiny_runs.tiny()
    model.video_shape = FEATURES
    with pytest.raises(DataError, match=f"utterance {said[0].id}: cannot read the video"):
        transcribe(model, Vocabulary.characters(), said[:1])


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_video_is_played_at_the_speed_of_the_audio(tmp_path, speed):
    said = filmed(tmp_path)
    batch = read(said)
    played = change_speed(batch, speed)
    for row, old in enumerate(batch.video_lengths.tolist()):
        new = int(played.video_lengths[row])
        assert new == -int(-old // speed) == len(played.video[row, :new])
        times = (torch.arange(new) * speed).clamp(max=max(old - 1, 0))
        torch.testing.assert_close(played.video[row, :new, 0], times)
    ratio = played.video_lengths[:2] / played.wave_lengths[:2]
    torch.testing.assert_close(
        ratio, batch.video_lengths[:2] / batch.wave_lengths[:2], rtol=0.02, atol=0
    )
    alone = change_speed(read(said[1:2]), speed)
    frames = int(alone.video_lengths[0])
    assert alone.video[0, :frames].equal(played.video[1, :frames])


def test_a_manifest_keeps_its_video_relative_and_refuses_what_is_no_path(tmp_path):
    (tmp_path / "film").mkdir()
    said, manifest = filmed(tmp_path / "film"), tmp_path / "manifests" / "all.jsonl"
    write_manifest(manifest, said)
    assert [each.video for each in read_manifest(manifest)] == [each.video for each in said]
    text = manifest.read_text()
    assert '"video": "../film/' in text and text.count("video") == 2
    manifest.write_text(text.replace('"video": "', '"video": 7, "was": "', 1))
    with pytest.raises(DataError, match=r"all.jsonl:1: the key 'video' must be a string, found 7"):
        read_manifest(manifest)


def test_video_is_staged_beside_its_audio(tmp_path):
    (tmp_path / "far").mkdir()
    said = filmed(tmp_path / "far")
    moved = stage_files(said, tmp_path / "near")
    assert moved[0].video.is_relative_to(tmp_path / "near") and moved[2].video is None
    assert moved[0].video.read_bytes() == said[0].video.read_bytes()
