"""Spikes are judged by the run's own past and dropped a few times at most; fixed limits stall."""

import math

import pytest
from torch import nn

from lact_asr.config.training import GuardConfig
from lact_asr.training.guard import (
    BREAKER,
    IN_A_ROW,
    SHARE,
    WINDOW,
    limit,
    note_step,
    recently_dropped,
    start_of_rise,
    update_mean_norm,
)
from lact_asr.training.loss import Outcome
from lact_asr.training.resume import State
from lact_asr.utils.errors import Failed
from tests.lact_asr.tiny_runs import quiet_logger, run, settings, tones

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
    assert recently_dropped([5, 100, 101, 1100], 1100) == [101, 1100], (
        "1,000 of them, the present one too"
    )


def test_a_run_says_which_limit_stopped_it_and_learns_with_a_relative_one(tmp_path):
    train = tones(tmp_path, 4)
    with pytest.raises(Failed, match=r"20 steps in a row.*above 0\.5.*skip_ratio: 10"):
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


def outcome(loss: float, norm: float, highest: float = math.inf) -> Outcome:
    suspects = ["u1", "u2"]
    return Outcome(loss, 9.0, {}, {}, norm, 8.0, False, {}, highest, suspects)


def given_up(state: State, step: Outcome, model: nn.Module) -> str:
    """Why a run ends with a step that is not taken."""
    with pytest.raises(Failed) as caught:
        note_step(state, settings(), quiet_logger(), step, model)
    assert caught.value.cause == "diverged"
    return str(caught.value)


def test_a_run_that_ends_says_how_often_by_what_and_what_to_change():
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "abcde"})
    state = State(step=60, in_a_row=BREAKER - 1, typical_norm=2.5)
    endless = "a loss or gradient that is not finite (weights that are not: {}). Lower the learning"
    advice = "rate, now 0.004, or look at u1, u2"
    expected = f"20 steps in a row, up to step 60, had {endless.format('none')} {advice}"
    assert given_up(state, outcome(math.nan, 1.0), model) == expected
    assert (state.in_a_row, state.skipped, state.dropped) == (20, 1, [60])
    for name in "bcde":
        model[name].weight.data.fill_(math.inf)
    state = State(step=900, dropped=[*range(700, 749)])
    note_step(state, settings(), quiet_logger(), outcome(1.0, math.inf), model)
    assert len(state.dropped) == SHARE * WINDOW, "so many may be dropped"
    state.step += 1
    broken = endless.format("b.weight, c.weight, d.weight")
    expected = f"51 of 901 steps, up to step 901, had {broken} {advice}"
    assert given_up(state, outcome(1.0, math.inf), model) == expected


def test_a_run_that_a_limit_stops_is_told_of_a_relative_one():
    model = nn.Linear(1, 1)
    state = State(step=40, in_a_row=BREAKER - 1, typical_norm=2.5)
    assert given_up(state, outcome(1.0, 9.0, highest=5.0), model) == (
        "20 steps in a row, up to step 40, had a gradient norm above 5 while 2.55 is usual. "
        "A fixed guard.skip_above may lie below what a sound model needs: write guard: "
        "{skip_ratio: 10} instead, or lower the learning rate, now 0.004, or look at u1, u2"
    )


def test_a_step_that_is_taken_ends_the_row_and_moves_the_usual_numbers():
    state = State(
        step=7, in_a_row=3, skipped=3, typical_norm=2.0, typical_loss=4.0, lowest_loss=4.0
    )
    note_step(state, settings(), quiet_logger(), outcome(3.0, 1.0), nn.Linear(1, 1))
    assert (state.in_a_row, state.skipped, state.dropped) == (0, 3, [])
    assert state.typical_norm == pytest.approx(0.98 * 2.0 + 0.02 * 1.0)
    assert state.typical_loss == state.lowest_loss == pytest.approx(0.98 * 4.0 + 0.02 * 3.0)
    note_step(state, settings(), quiet_logger(), outcome(6.0, 1.0), nn.Linear(1, 1))
    assert state.lowest_loss < state.typical_loss


def test_a_rise_begins_with_the_first_loss_that_is_far_above_the_lowest_mean_taken_or_not():
    risen, starts = 0, []
    for step, loss in enumerate([0.09, 1.4e8, math.nan, 1.2e8, 1900.0, 3.0, 4.0, math.inf], 59):
        risen = start_of_rise(risen, step, loss, lowest=1.7)
        starts.append(risen)
    assert starts == [0, 60, 60, 60, 60, 0, 65, 65]
    assert start_of_rise(0, 7, 1e9, lowest=math.inf) == 0, "nothing was lower before"
    assert start_of_rise(0, 7, 3.0, lowest=-3.0) == 0  # a loss with a logarithm in it
