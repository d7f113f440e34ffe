"""Settings of the kinds that train: presets complete them, and survive a round through job.json."""

import pytest
from pydantic import ValidationError

from jobs.job import Job
from jobs.kinds import _training, distill, teacher, train
from lact_asr.config.training import TrainingConfig
from lact_asr.data.manifest import Utterance, write_manifest
from lact_asr.text.vocabulary import Vocabulary
from tests.lact_asr.tiny_runs import tones

FILES = {"train": "train.jsonl", "dev": "dev.jsonl"}


@pytest.mark.parametrize("kind", [train, teacher, distill])
def test_the_modern_recipe_is_the_default_of_every_kind_that_trains(kind):
    more = {"teacher": "teacher"} if kind is distill else {}
    settings = kind.Settings(**FILES, **more)
    assert settings.training.augment.speeds == (0.9, 1.0, 1.1)
    assert settings.training.precision == "auto"
    assert kind.Settings(**FILES, **more, preset="plain").training == TrainingConfig()


def test_a_preset_leaves_what_is_written_alone():
    written = {"max_steps": 9, "optim": {"warmup_steps": 3}, "augment": {"speeds": [1.0]}}
    original = train.Settings(**FILES, preset="original", training=written).training
    assert (original.max_steps, original.optim.warmup_steps) == (9, 3)
    assert (original.batch_utterances, original.optim.decay) == (12, "constant")
    modern = train.Settings(**FILES, training=written).training
    assert modern.augment.speeds == (1.0,)
    assert modern.augment.time_masks == 10


def test_completed_settings_read_back_are_the_same():
    settings = train.Settings(**FILES, training={"augment": {"time_masks": 4}})
    assert train.Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_learned_vocabulary_is_kept_for_the_processes_that_come_after(tmp_path):
    job = Job(tmp_path, 0, 1, 0, print, print, bool)
    settings = train.Settings(**FILES, vocabulary="bpe", vocabulary_size=40)
    spoken = [Utterance(str(n), tmp_path, 1.0, f"The cat, {n}", "") for n in ("sat", "met", "hid")]
    first = _training.vocabulary(settings, spoken, job)
    assert len(first) == 40
    again = _training.vocabulary(settings, spoken[:1], job)
    assert again == first
    assert _training.vocabulary(train.Settings(**FILES), spoken, job) == Vocabulary.characters()


def test_additions_to_ctc_that_cannot_work_are_refused_before_anything_runs():
    with pytest.raises(ValidationError, match=r"ctc\n.*has 4 blocks.*choose among 1 to 3"):
        train.Settings(**FILES, ctc={"intermediate": [4]})
    with pytest.raises(ValidationError, match=r"consistency\n.*views .* would be the same"):
        train.Settings(**FILES, preset="plain", ctc={"consistency": 0.2})
    train.Settings(**FILES, ctc={"consistency": 0.2, "intermediate": [2]})


def test_staging_gives_training_and_dev_their_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    spoken = tones(tmp_path, 3)
    files = {"train": tmp_path / "train.jsonl", "dev": tmp_path / "dev.jsonl"}
    write_manifest(files["train"], spoken[:2])
    write_manifest(files["dev"], spoken[2:])
    plain = _training.utterances(train.Settings(**files))
    assert [each.audio for part in plain for each in part] == [each.audio for each in spoken]
    parts = _training.utterances(train.Settings(**files, stage=True))
    assert [[each.id for each in part] for part in parts] == [["0-0", "0-1"], ["0-2"]]
    every = [each.audio for part in parts for each in part]
    assert all(audio.is_relative_to(tmp_path / "node") and audio.is_file() for audio in every)
