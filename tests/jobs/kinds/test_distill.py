"""From a teacher's checkpoint over its cache to a student, through the kinds themselves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.models.registry import FAMILIES
from jobs.errors import SpecError
from jobs.job import Job
from jobs.kinds import cache, distill, evaluate, teacher
from jobs.reading.pipeline_file import read_pipeline
from lact_asr.config.augment import AugmentConfig
from lact_asr.config.training import TrainingConfig
from lact_asr.data.manifest import write_manifest
from lact_asr.training import checkpoint
from lact_asr.utils.errors import DataError, Interrupted
from lact_asr.utils.files import write_json
from tests.distill.tiny_models import tiny_baseline, utterances
from tests.lact_asr.tiny_runs import save_untrained

WATCHES = {"video": "features", "video_features": 4}


def job(folder: Path, stopped: bool = False) -> Job:
    folder.mkdir()
    nothing = lambda *about, **facts: None
    return Job(folder, 0, 1, 0, nothing, nothing, lambda: stopped)


def described(speech: Path, folder: Path) -> dict[str, Path]:
    """A manifest of six utterances and an untrained teacher's checkpoint."""
    write_manifest(folder / "train.jsonl", list(utterances(speech)[:6]))
    teacher = save_untrained(folder / "checkpoints" / "best", tiny_baseline(seed=1))
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


def filmed(speech: Path, folder: Path) -> Path:
    """A manifest of four utterances, three of them with features of four channels."""
    said = list(utterances(speech)[:4])
    for number, each in enumerate(said[:3]):
        said[number] = replace(each, video=folder / f"{number}.npy")
        frames = np.random.default_rng(number).normal(size=(int(each.duration * 25), 4))
        np.save(folder / f"{number}.npy", frames.astype(np.float16))
    write_manifest(folder / "filmed.jsonl", said)
    return folder / "filmed.jsonl"


def test_a_teacher_watches_what_its_manifest_names_and_teaches_what_it_has_seen(speech, tmp_path):
    manifest, blind = filmed(speech, tmp_path), tmp_path / "blind.jsonl"
    write_manifest(blind, list(utterances(speech)[:4]))
    steps = {"max_steps": 2, "batch_seconds": 12, "valid_every": 2, "checkpoint_every": 2}
    learned, unwatched = (
        teacher.run(
            teacher.Settings(
                train=manifest, dev=dev, preset="plain", model=WATCHES,
                training=TrainingConfig(**steps, max_unreadable=0),
            ),
            job(tmp_path / f"teacher_{dev.stem}"),
        )
        for dev in (manifest, blind)
    )  # fmt: skip
    assert learned.steps_skipped == 0
    assert learned.loss != unwatched.loss, "of one model: validation watches too"
    files = {"teacher": learned.checkpoint, "manifest": manifest}
    kept = cache.run(cache.Settings(**files), job(tmp_path / "cache_step"))
    losses = {
        name: distill.run(student(files, [1.0], cache=folder), job(tmp_path / name)).loss
        for name, folder in {"live": None, "read": kept.cache}.items()
    }
    assert losses["read"] == pytest.approx(losses["live"], rel=1e-3)
    (tmp_path / "1.npy").write_bytes(b"no features")
    again = evaluate.Settings(checkpoint=learned.checkpoint, manifest=manifest)
    with pytest.raises(DataError, match=r"cannot read the video file .*1\.npy"):
        evaluate.run(again, job(tmp_path / "evaluation"))
    with pytest.raises(DataError, match=r"1\.npy"):
        distill.run(student(files, [1.0]), job(tmp_path / "refused"))
    unseen = distill.run(student(files, [1.0], cache=kept.cache), job(tmp_path / "unseen"))
    assert unseen.loss == losses["read"], "a student that does not watch does not open the film"


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


CHAIN = """
steps:
  teacher:
    kind: teacher
    settings: {train: t.jsonl, dev: d.jsonl, VOCABULARY}
  cache:
    kind: cache
    needs: [teacher]
    settings: {teacher: "${teacher.checkpoint}", manifest: t.jsonl, KEPT}
  student:
    kind: distill
    needs: [cache]
    settings:
      teacher: ${teacher.checkpoint}
      cache: ${cache.cache}
      train: t.jsonl
      dev: d.jsonl
      ASKED
"""
BPE = "vocabulary: bpe, vocabulary_size: 500"
SPEEDS = "speeds: [0.9, 1.0, 1.1]"


@pytest.mark.parametrize(
    ("words", "kept", "asked", "place", "message"),
    [
        ("size: tiny", "top_k: 16", "size: tiny", "training", "hears speed 0.9, 1.1, which the ca"),
        ("size: tiny", "top_k: 16", "preset: plain", "", ""),
        ("size: tiny", SPEEDS, "distill: {top_k: 20}", "", ""),  # letters are kept whole
        (BPE, SPEEDS, "distill: {}", "distill.top_k", "16 of 500 symbols a frame: write top_k: 16"),
        (BPE, SPEEDS, "distill: {top_k: 16}", "", ""),
        (BPE, SPEEDS, "distill: {kd: sequence, temperature: 5}", "distill.temperature", "1, 2, 3,"),
        (BPE, SPEEDS, "distill: {top_k: 9, feature_weight: 1}", "distill.feature", "hidden: last"),
        (BPE, SPEEDS, 'distill: {top_k: "${teacher.steps}"}', "", ""),  # known later
    ],
)
def test_check_sees_that_a_cache_will_not_hold_what_the_student_asks_for(
    tmp_path, words, kept, asked, place, message
):
    path = tmp_path / "p.yaml"
    text = CHAIN.replace("VOCABULARY", words).replace("KEPT", kept).replace("ASKED", asked)
    path.write_text(text)
    if not message:
        assert [step.name for step in read_pipeline(path).steps] == ["teacher", "cache", "student"]
        return
    with pytest.raises(SpecError) as caught:
        read_pipeline(path)
    (said,) = caught.value.mistakes
    assert f"steps.student.settings.{place}" in said and message in said


def test_a_number_that_a_program_says_later_leaves_the_other_settings_to_be_checked(tmp_path):
    """Settings beside one of unknown type had no defaults: `check` ended in a KeyError."""
    asked = 'vocabulary_size: "${program.count}"'
    text = CHAIN.replace("VOCABULARY", "size: tiny").replace("KEPT", "top_k: 16")
    text = text.replace("ASKED", asked).replace("needs: [cache]", "needs: [cache, program]")
    path = tmp_path / "p.yaml"
    path.write_text(text + "  program: {kind: command, settings: {argv: [count]}}\n")
    with pytest.raises(SpecError) as caught:
        read_pipeline(path)
    (said,) = caught.value.mistakes
    assert "steps.student.settings.training.augment.speeds: the student hears speed 0.9" in said
    cached = "cache.speeds=[0.9, 1.0, 1.1]"
    with pytest.raises(SpecError, match=r"model\.layerz: the lact model has no 'layerz'"):
        read_pipeline(path, [cached, "student.model={layerz: 3}"])
    mended = read_pipeline(path, [cached])
    assert mended.step("student").settings["vocabulary_size"] == "${program.count}"


def test_check_sees_what_a_cache_that_is_there_does_not_hold(tmp_path):
    kept = {"symbols": 500, "kept": 16, "temperatures": [1.0, 2.0], "hidden": "none"}
    path = tmp_path / "p.yaml"
    path.write_text(
        "steps:\n  student:\n    kind: distill\n    settings: {cache: kept, train: t, dev: d, "
        "preset: plain, distill: {top_k: 20}}\n"
    )
    assert read_pipeline(path, folder=tmp_path).steps, "nothing is there yet"
    (tmp_path / "kept").mkdir()
    write_json(tmp_path / "kept" / "cache.json", kept)
    with pytest.raises(SpecError, match="16 of 500 symbols a frame: write top_k: 16 or less"):
        read_pipeline(path, folder=tmp_path)
    read_pipeline(path, ["student.distill.top_k=16"], tmp_path)
