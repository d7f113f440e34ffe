"""Spikes are judged by the run's own past and dropped a few times at most; fixed limits stall."""

import math

import pytest

from lact_asr.config.training import GuardConfig
from lact_asr.training.guard import (
    IN_A_ROW,
    limit,
    recently_dropped,
    start_of_rise,
    update_mean_norm,
)
from lact_asr.utils.errors import Failed
from tests.lact_asr.tiny_runs import run, tones

RELATIVE = GuardConfig(skip_ratio=10.0)


def taken(norms: list[float], config: GuardConfig) -> list[bool]:
    """Which of these steps a run takes."""
    typical, spikes, decisions = 0.0, 0, []
    for norm in norms:
        highest = limit(config, typical, spikes)
        typical = update_mean_norm(typical, norm, highest)
        decisions.append(math.isfinite(norm) and norm <= highest)
        spikes = 0 if decisions[-1] else spikes + 1
    return decisions


def test_a_spike_is_dropped_and_a_new_normal_is_followed():
    assert taken([5.0, 6.0, 80.0, 5.0], RELATIVE) == [True, True, False, True]
    decisions = taken([1.0] * 20 + [100.0] * 100, RELATIVE)
    assert decisions[20:24] == [False] * IN_A_ROW + [True]
    assert all(decisions[-50:])
    assert all(taken([5.0, 6.0, 80.0, 1e9], GuardConfig()))


def test_a_norm_that_is_not_a_number_leaves_the_past_alone():
    assert (
        update_mean_norm(3.0, math.nan, math.inf)
        == update_mean_norm(3.0, math.inf, math.inf)
        == 3.0
    )
    assert update_mean_norm(0.0, 7.0, math.inf) == 7.0
    assert update_mean_norm(1.0, 500.0, 10.0) == pytest.approx(1.18)


def test_the_original_fixed_limit_never_lets_a_healthy_model_go():
    norms = [5.0 + step % 14 for step in range(1100)]  # 5 to 18, as measured
    assert sum(taken(norms, GuardConfig(skip_above=3.0))) == 0
    assert sum(taken(norms, GuardConfig(skip_above=10.0))) < 500
    assert all(taken(norms, RELATIVE))


def test_only_the_last_thousand_steps_count_as_recent():
    assert recently_dropped([5, 900, 1100], 1100) == [900, 1100]


def test_a_run_says_which_limit_stopped_it_and_learns_with_a_relative_one(tmp_path):
    train = tones(tmp_path, 4)
    advice = (
        r"A fixed guard\.skip_above may lie below what a sound model needs: write guard: {skip_"
    )
    with pytest.raises(
        Failed, match=rf"20 steps in a row.*above 0\.5 while \S+ is usual\. {advice}"
    ):
        run(tmp_path / "fixed", train, max_steps=30, guard={"skip_above": 0.5})
    result, recorded = run(tmp_path / "own", train, max_steps=30, guard={"skip_ratio": 10.0})
    assert result.steps_skipped == 0
    losses = list(recorded.losses().values())
    assert losses[-1] < 0.6 * losses[0]


def test_a_dropped_spike_moves_no_weight_and_is_named_with_its_norm(tmp_path, capsys):
    train = tones(tmp_path, 4)
    with pytest.raises(Failed):
        run(tmp_path, train, max_steps=30, guard={"skip_above": 0.5}, valid_every=99)
    said = capsys.readouterr().out
    norms = [line for line in said.splitlines() if line.startswith("Dropped step")]
    assert len(norms) == 20
    assert "is above 0.5, with 0-" in norms[0]


def test_a_rise_begins_with_the_first_loss_that_is_far_above_the_lowest_mean_taken_or_not():
    risen, starts = 0, []
    for step, loss in enumerate([0.09, 1.4e8, math.nan, 1.2e8, 1900.0, 3.0, 4.0, math.inf], 59):
        risen = start_of_rise(risen, step, loss, lowest=1.7)
        starts.append(risen)
    assert starts == [0, 60, 60, 60, 60, 0, 65, 65]
    assert start_of_rise(0, 7, 1e9, lowest=math.inf) == 0, "nothing was lower before"
    assert start_of_rise(0, 7, 3.0, lowest=-3.0) == 0  # a loss with a logarithm in it
