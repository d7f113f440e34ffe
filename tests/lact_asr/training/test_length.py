"""Length in epochs: what that is in steps, also where a run goes on otherwise than it began."""

import pytest

from lact_asr.config.training import TrainingConfig
from lact_asr.training import checkpoint
from lact_asr.training.length import Course, total_steps
from tests.lact_asr.tiny_runs import RecordedEvents, run, tones


def test_a_run_that_goes_on_at_another_pace_does_the_rest_of_its_epochs():
    course = Course().at_pace(100.0, 0)
    assert course.steps(40) == 4000
    assert course.at_pace(100.0, 1234) is course
    halved = course.at_pace(50.0, 1000)  # twice the processes after ten epochs
    assert halved.steps(40) == 1000 + 30 * 50
    assert halved.steps(12) == 1000 + 2 * 50
    again = halved.at_pace(100.0, 1500)  # after twenty
    assert again.steps(40) == 1500 + 20 * 100


def test_steps_that_are_given_stay_what_they_are():
    assert total_steps(TrainingConfig(max_steps=7), Course(pace=100.0)) == 7
    assert total_steps(TrainingConfig(epochs=0.5), Course(pace=7.0)) == 4


@pytest.mark.parametrize("way", [{"batch_seconds": 5.0}, {"batch_utterances": 2}])
def test_a_run_of_three_epochs_hears_everything_three_times_and_ends_at_rate_zero(tmp_path, way):
    utterances, recorded = tones(tmp_path, 10), RecordedEvents()
    given = {"max_steps": None, "batch_seconds": None, "epochs": 3, "valid_every": 1000, **way}
    result, _ = run(tmp_path / "run", utterances, recorded=recorded, **given)
    (length,) = recorded.named("length")
    assert result.step == length["steps"] == 3 * length["steps_per_epoch"]
    assert length["steps_per_epoch"] >= 3
    rates = [line["learning_rate"] for line in recorded.metrics if "learning_rate" in line]
    assert rates[-1] < 0.2 * max(rates)
    measured = [line for line in recorded.metrics if "wer" in line]
    assert [line["step"] for line in measured] == [result.step]


def test_a_run_in_epochs_that_is_cut_ends_as_if_it_had_not_been(tmp_path):
    utterances = tones(tmp_path, 10)
    given = {"max_steps": None, "epochs": 2}
    whole, _ = run(tmp_path / "whole", utterances, **given)
    run(tmp_path / "cut", utterances, stop_at=4, **given)
    cut, recorded = run(tmp_path / "cut", utterances, **given)
    assert cut.step == whole.step
    assert recorded.named("length")[0]["steps"] == whole.step
    name = f"checkpoints/{whole.step:08d}/{checkpoint.WEIGHTS}"
    one, other = (checkpoint.load(tmp_path / each / name) for each in ("whole", "cut"))
    assert all(one[key].equal(other[key]) for key in one)


def test_a_run_that_began_in_steps_goes_on_in_epochs(tmp_path):
    utterances = tones(tmp_path, 10)
    run(tmp_path / "run", utterances, max_steps=3)
    result, recorded = run(tmp_path / "run", utterances, max_steps=None, epochs=2)
    assert result.step == 2 * recorded.named("length")[0]["steps_per_epoch"]


def test_a_run_that_goes_on_with_larger_steps_says_how_many_there_are_now(tmp_path):
    utterances = tones(tmp_path, 10)
    given = {"max_steps": None, "epochs": 3, "batch_seconds": 5.0}
    whole, _ = run(tmp_path / "whole", utterances, **given)
    run(tmp_path / "cut", utterances, stop_at=3, **given)
    cut, recorded = run(tmp_path / "cut", utterances, accumulate=2, **given)
    assert cut.step < whole.step
    said = {line["total_steps"] for line in recorded.metrics if "total_steps" in line}
    assert said == {cut.step}
