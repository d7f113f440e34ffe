"""Checkpoints as often as loses least time, chosen from what they cost, and said."""

import math
import re

import pytest
from pydantic import ValidationError

from lact_asr.training import checkpoint, interval
from lact_asr.training.interval import Meter, best_seconds, choose
from tests.lact_asr.tiny_runs import run, settings, tones


def time_per_second_of_work(every: float, save: float, failure: float) -> float:
    """Expected, with failures at random: Daly 2006, equation 13, without the time to begin."""
    return failure * math.expm1((every + save) / failure) / every


@pytest.mark.parametrize(
    ("save", "failure"), [(0.5, 86_400), (30, 28_440), (60, 3600), (300, 3600)]
)
def test_no_other_interval_loses_less_time(save, failure):
    best = best_seconds(save, failure)
    others = [best * 1.01**power for power in range(-200, 200)]
    least = min(time_per_second_of_work(each, save, failure) for each in others)
    assert time_per_second_of_work(best, save, failure) <= least * (1 + 1e-4)
    assert best == pytest.approx(math.sqrt(2 * save * failure), rel=0.35)  # Young's


def test_where_saving_takes_longer_than_a_run_lives_it_is_done_that_often():
    assert best_seconds(save=7200, failure=3600) == 3600


def test_steps_are_chosen_anew_only_where_the_present_ones_are_far_off():
    meter = Meter(save=0.5)  # sqrt(2 x 0.5 x 86,400) = 294 s
    assert choose(meter, 2.0, 86_400, present=0) == 147
    assert choose(meter, 2.0, 86_400, present=120) == 120
    assert choose(meter, 2.0, 86_400, present=300) == 147
    assert choose(meter, 2.0, 86_400, present=20) == 147
    meter.write = 2000.0
    assert choose(meter, 2.0, 86_400, present=147) == 1000, "two at once are not written"
    assert choose(Meter(save=0.1), 9e9, 86_400, present=0) == 1


def test_a_run_chooses_says_and_keeps_to_its_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(interval, "FIRST", 4)
    changes = {"max_steps": 30, "valid_every": 99, "keep_checkpoints": 99, "samples": 0}
    _, recorded = run(
        tmp_path, tones(tmp_path, 2), checkpoint_every="auto", failure_every=1e-9, **changes
    )
    told = recorded.named("checkpoint_interval")
    saved = [int(path.name) for path in checkpoint.by_step(tmp_path / "checkpoints")]
    chosen = told[0]["steps"]
    assert saved[:2] == [4, min(30, (4 // chosen + 1) * chosen)]
    assert told[0]["failure_every_hours"] == 1e-9
    took = {what: told[0][f"{what}_seconds"] for what in ("save", "write", "step")}
    assert min(took["save"], took["step"]) > 0 and took["write"] >= 0
    assert all(round(each, 4) == each for each in took.values())
    said = re.search(
        r"A checkpoint every (\S+) steps, (\S+) s: one holds training up for (\S+) s, and a run is "
        r"taken to be cut every 1e-09 h",
        capsys.readouterr().out,
    )
    expected = [chosen, chosen * took["step"], took["save"]]
    assert [*map(float, said.groups())] == pytest.approx(expected, rel=0.05, abs=1e-4 * chosen)
    _, recorded = run(
        tmp_path / "rare", tones(tmp_path, 2), checkpoint_every="auto", failure_every=1e6, **changes
    )
    assert recorded.named("checkpoint_interval")[0]["steps"] > 26
    assert [facts["step"] for facts in recorded.named("checkpoint")] == [4, 30]


def test_a_mean_of_checkpoints_needs_to_know_their_steps():
    with pytest.raises(ValidationError, match="write checkpoint_every as a number, not auto"):
        settings(checkpoint_every="auto", average={"last": 3})
    for wrong in (0, -1, "often"):
        with pytest.raises(ValidationError):
            settings(checkpoint_every=wrong)
