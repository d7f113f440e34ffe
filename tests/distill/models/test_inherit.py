"""Students that begin as part of their teacher."""

import pytest
import torch

from distill.config.language_model import LMTrainingConfig
from distill.models.inherit import take_layers
from jobs.kinds import distill, language_model
from lact_asr.training import checkpoint
from lact_asr.utils.errors import DataError
from tests.distill.language_model.test_language_model import model as language
from tests.distill.test_wiring import files as files
from tests.distill.test_wiring import job, spoken, steps, student
from tests.distill.tiny_models import tiny_baseline, tiny_teacher
from tests.lact_asr.tiny_runs import save_untrained, tiny

STILL = {"optim": {"learning_rate": 1e-30, "weight_decay": 0.0}}


def test_a_student_with_all_layers_is_its_teacher_and_with_some_it_has_these():
    waves, lengths = torch.randn(1, 8000) * 0.1, torch.tensor([8000])
    for make in (lambda n, s: tiny(seed=s, layers=n), lambda n, s: tiny_teacher(seed=s, blocks=n)):
        teacher, same, part = make(3, 1).eval(), make(3, 0).eval(), make(2, 0).eval()
        take_layers(same, teacher, [1, 2, 3])
        assert same(waves, lengths).log_probs.equal(teacher(waves, lengths).log_probs)
        take_layers(part, teacher, [3, 1])
        for mine, theirs in zip(part.blocks, (teacher.blocks[2], teacher.blocks[0]), strict=True):
            for name, value in theirs.state_dict().items():
                assert mine.state_dict()[name].equal(value), name
        assert part.head.weight.equal(teacher.head.weight)


def test_what_does_not_fit_is_refused_in_words():
    for one, other, layers, message in (
        (tiny_baseline(), tiny(), [1], "a baseline student cannot begin as part of a lact teacher"),
        (tiny(), tiny(layers=2), [1, 2], r"the student has 1 blocks, write as many .*, 1 to 2"),
        (tiny(), tiny(layers=2), [3], r"teacher_layers \[3\]: the student has 1"),
        (tiny(), tiny(mlp=32), [1], r"is \[128, 32\] here and \[64, 32\] in the teacher"),
        (language(), language(hidden=64), [1, 2], "in the teacher: write the teacher's widths"),
    ):
        with pytest.raises(DataError, match=message):
            take_layers(one, other, layers)


def test_the_kind_distill_begins_with_the_layers_it_is_told_of(files, tmp_path):
    teacher = tiny(seed=1, layers=2)
    path = save_untrained(tmp_path / "deep" / "best", teacher)
    worker, recorded = job(tmp_path / "step")
    given = {"teacher_layers": (2,), "training": STILL}
    done = distill.run(student({**files, "teacher": path}, **given), worker)
    assert recorded.named("inherited") == [{"layers": [2]}]
    fresh = tiny()
    take_layers(fresh, teacher, [2])
    saved = checkpoint.load(done.checkpoint / checkpoint.WEIGHTS)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(saved[name], value, msg=name)
    with pytest.raises(ValueError, match="goes with a teacher's checkpoint, without init_from"):
        student(files, teacher_layers=(1,), init_from=path)


def test_a_language_model_begins_as_its_teacher_and_has_nothing_to_learn_from_it(tmp_path):
    teacher, _ = spoken(tmp_path, "teacher", training={"seed": 5})
    _, recorded = spoken(
        tmp_path, "student", teacher=teacher.checkpoint, teacher_layers=(1,), training=STILL
    )
    assert all(abs(line["kd"]) < 1e-5 for line in steps(recorded))
    with pytest.raises(ValueError, match="teacher_layers goes with a teacher"):
        language_model.Settings(train="t", dev="d", teacher_layers=(1,))


def test_a_language_model_stops_early_as_the_original_recipe_wants_it():
    stopping = LMTrainingConfig().stopping
    assert (stopping.patience, stopping.min_delta, stopping.warmup_steps) == (20, 0.001, 1000)
