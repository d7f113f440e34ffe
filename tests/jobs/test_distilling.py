"""From a teacher's checkpoint over its cache to a student, through the kinds themselves."""

from pathlib import Path

import pytest

from distill.families import FAMILIES
from jobs.errors import Interrupted
from jobs.job import Job
from jobs.kinds import cache, distill
from lact_asr import checkpoint
from lact_asr.config import TrainingConfig
from lact_asr.errors import DataError
from lact_asr.manifest import write_manifest
from lact_asr.recipe import AugmentConfig
from tests.distill.parts import VOCABULARY, tiny_baseline, utterances


def job(folder: Path, stopped: bool = False) -> Job:
    folder.mkdir()
    nothing = lambda *about, **facts: None
    return Job(folder, 0, 1, 0, nothing, nothing, lambda: stopped)


def described(speech: Path, folder: Path) -> dict[str, Path]:
    """A manifest of six utterances and an untrained teacher's checkpoint."""
    write_manifest(folder / "train.jsonl", list(utterances(speech)[:6]))
    model = tiny_baseline(seed=1)
    about = checkpoint.describe(model, VOCABULARY, TrainingConfig())
    contents = {
        "model.safetensors": model.state_dict(),
        "config.json": about,
        checkpoint.STATE: {"step": 1},
    }
    teacher = checkpoint.save(folder / "checkpoints", "best", contents)
    return {"manifest": folder / "train.jsonl", "teacher": teacher}


def student(files: dict[str, Path], speeds: list[float], **more: object) -> distill.Settings:
    training = TrainingConfig(
        max_steps=2, batch_seconds=12, valid_every=2, checkpoint_every=2, max_unreadable=0,
        augment=AugmentConfig(speeds=speeds),
    )  # fmt: skip
    return distill.Settings(
        teacher=files["teacher"], train=files["manifest"], dev=files["manifest"],
        size="tiny", model={"layers": 1}, training=training, **more,
    )  # fmt: skip


def test_a_student_learns_from_the_cache_step_at_every_speed_it_hears(speech, tmp_path):
    files = described(speech, tmp_path)
    settings = cache.Settings(**files, speeds=[0.9, 1.0], hidden="last", batch_seconds=8)
    made = cache.run(settings, job(tmp_path / "cache_step"))
    assert (made.utterances, made.unreadable) == (6, 0)
    assert made.bytes == sum(path.stat().st_size for path in made.cache.glob("*.bin")) > 1000
    taught = student(files, [0.9, 1.0], cache=made.cache, distill={"feature_weight": 0.1})
    done = distill.run(taught, job(tmp_path / "student"))
    assert (done.steps, done.steps_skipped) == (2, 0)
    live = distill.run(student(files, [0.9, 1.0], distill={"feature_weight": 0.1}),
                       job(tmp_path / "live"))  # fmt: skip
    assert done.loss == pytest.approx(live.loss, rel=1e-3), "what the living teacher would teach"
    with pytest.raises(DataError, match=r"6 of 18 records are missing.*not at 1.1: add it"):
        distill.run(student(files, [0.9, 1.0, 1.1], cache=made.cache), job(tmp_path / "refused"))


def test_a_cache_step_that_is_stopped_says_so_and_goes_on(speech, tmp_path):
    files = described(speech, tmp_path)
    settings = cache.Settings(**files, batch_seconds=4)
    with pytest.raises(Interrupted) as stopped:
        cache.run(settings, job(tmp_path / "step", stopped=True))
    assert 0 < stopped.value.position < 6
    nothing = lambda *about, **facts: None
    rest = Job(tmp_path / "step", 0, 1, 0, nothing, nothing, bool)
    assert cache.run(settings, rest).utterances == 6


def test_a_student_with_a_vocabulary_of_its_own_needs_a_projector_or_transcripts(speech, tmp_path):
    files = described(speech, tmp_path)
    own = {"vocabulary": "bpe", "vocabulary_size": 40}
    with pytest.raises(DataError, match=r"29 and 40|40 and 29.*target: projector"):
        distill.run(student(files, [1.0], **own), job(tmp_path / "refused"))
    for number, how in enumerate(({"target": "projector"}, {"kd": "sequence"})):
        done = distill.run(student(files, [1.0], distill=how, **own), job(tmp_path / str(number)))
        assert done.steps_skipped == 0
        stored = checkpoint.load_model(done.checkpoint, FAMILIES)[1]
        assert len(stored) == 40
