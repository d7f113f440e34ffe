"""Bad data under the original recipes, whose BatchNorm remembers: nothing of it is remembered."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distill.config.presets import TEACHER
from distill.language_model.batch import text_batch
from distill.models.teacher import Teacher
from jobs.job import Job
from jobs.kinds import teacher
from lact_asr.data.manifest import Utterance, write_manifest
from lact_asr.distributed.processes import World
from lact_asr.training import train_step
from lact_asr.training.objective import CTCObjective
from lact_asr.utils.errors import Failed
from tests.distill.tiny_models import batch, part, tiny_teacher, utterances
from tests.lact_asr.tiny_runs import RecordedEvents, run, settings
from tests.lact_asr.training.test_quarantine import Overflowing, unread
from tests.lact_asr.training.test_resume import assert_same_bits

SHORT = {"max_steps": 3, "batch_seconds": 20.0, "valid_every": 3, "checkpoint_every": 3}


def emergency() -> Teacher:
    return tiny_teacher(**TEACHER["emergency"]["model"])


def amplified(folder: Path, train: list[Utterance], place: int) -> list[Utterance]:
    """The same, one of them 1e30 times as loud."""
    samples, rate = soundfile.read(train[place].audio, dtype="float32")
    soundfile.write(folder / "loud.wav", samples * np.float32(1e30), rate, subtype="FLOAT")
    changed = replace(train[place], audio=folder / "loud.wav")
    return [changed if each is train[place] else each for each in train]


def test_an_utterance_1e30_times_too_loud_is_left_out_before_a_model_hears_it(speech, tmp_path):
    train = list(utterances(speech))
    loud = train[2].id
    guard = TEACHER["emergency"]["training"]["guard"]
    _, recorded = run(
        tmp_path / "loud",
        amplified(tmp_path, train, 2),
        CTCObjective(emergency()),
        guard=guard,
        **SHORT,
    )
    absent = unread(tmp_path, train, loud)
    run(tmp_path / "absent", absent, CTCObjective(emergency()), guard=guard, **SHORT)
    assert_same_bits(tmp_path / "loud", tmp_path / "absent", "00000003")
    (named,) = recorded.named("unreadable")
    assert list(named["files"]) == [loud]
    assert named["files"][loud].endswith("audio lies between -1 and 1")
    assert recorded.named("step_dropped") == []


def test_behind_batch_norm_too_the_one_utterance_is_found(speech, tmp_path):
    train = list(utterances(speech))
    loud = train[2].id
    objective = Overflowing(emergency(), loud)
    _, recorded = run(tmp_path / "loud", train, objective, **SHORT)
    absent = unread(tmp_path, train, loud)
    run(tmp_path / "absent", absent, CTCObjective(emergency()), **SHORT)
    assert [facts["id"] for facts in recorded.named("quarantined")] == [loud]
    assert_same_bits(tmp_path / "loud", tmp_path / "absent", "00000003")


def test_a_dropped_step_leaves_running_statistics_as_they_were(speech):
    objective = CTCObjective(emergency().train())
    module = train_step.ObjectiveModule(objective)
    optimizer = torch.optim.SGD(objective.trainable.parameters(), lr=1.0)
    for highest, taken in ((torch.inf, True), (0.0, False)):
        before = {name: value.clone() for name, value in objective.model.state_dict().items()}
        setting = train_step.Setting(settings(), World(), torch.device("cpu"), highest)
        outcome = train_step.take_step(
            module, optimizer, [batch(speech, 4)], 0.0, setting, False, {}
        )
        after = objective.model.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert outcome.taken is taken
        assert any("running_mean" in name for name in moved) is taken, "both batches are heard"
        assert bool(moved) is taken


def test_rows_of_a_batch_are_a_batch(speech):
    whole = batch(speech, 4)
    expected, found = part(whole, [0, 2]), whole.rows([0, 2])
    assert torch.equal(found.waves, expected.waves) and found.ids == expected.ids
    texts = [[3, 4], [5, 6, 7, 8], [9]]
    some = text_batch(texts, ["a", "b", "c"]).rows([0, 2])
    assert some.ids == ["a", "c"] and some.amount == 5 and some.not_finite() == []
    for name in ("inputs", "targets"):
        alone = getattr(text_batch([texts[0], texts[2]], ["a", "c"]), name)
        assert torch.equal(getattr(some, name), alone), name


def teacher_step(folder: Path, train: list[Utterance], dev: list[Utterance]) -> teacher.Result:
    """The kind `teacher` under the original emergency recipe."""
    for name, said in (("train", train), ("dev", dev)):
        write_manifest(folder / f"{name}.jsonl", said)
    described = teacher.Settings(
        train=folder / "train.jsonl", dev=folder / "dev.jsonl", preset="emergency", training=SHORT
    )
    recorded = RecordedEvents()
    job = Job(
        directory=folder, rank=0, world_size=1, local_rank=0, should_stop=lambda: False,
        report=recorded.metrics.append, event=recorded.event,
    )  # fmt: skip
    return teacher.run(described, job)


def test_the_emergency_recipe_ends_with_a_teacher_although_one_utterance_is_too_loud(
    speech, tmp_path
):
    train = list(utterances(speech))
    done = teacher_step(tmp_path, amplified(tmp_path, train, 2), train[:2])
    assert done.checkpoint.name == "best" and np.isfinite(done.loss) and done.steps_skipped == 0


def test_training_that_no_validation_could_judge_ends_in_a_sentence(speech, tmp_path):
    train = list(utterances(speech))
    unfit = replace(train[0], text="A " * 2000)  # no CTC path: a loss that is not finite
    with pytest.raises(Failed, match=r"in 3 steps no validation has found a model to keep") as said:
        teacher_step(tmp_path, train, [unfit])
    assert said.value.cause == "diverged" and "dev.jsonl are long enough" in str(said.value)
