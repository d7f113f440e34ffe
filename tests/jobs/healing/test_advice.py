"""What to ask for next time, against numbers worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.healing import advice


def test_young_s_interval_is_the_square_root_of_twice_save_times_between() -> None:
    """A save of 8 s and a fault every 4 h: sqrt(2 x 8 x 14400) = 480 s, less the save itself."""
    assert advice.interval(8.0, 0.0, 14_400.0) == pytest.approx(480.0 - 8.0)


def test_a_long_start_after_a_fault_makes_checkpoints_rarer() -> None:
    """Daly: sqrt(2 x 8 x (14400 + 1225)) = 500 s."""
    assert advice.interval(8.0, 1225.0, 14_400.0) == pytest.approx(500.0 - 8.0)


def test_where_a_save_takes_longer_than_a_run_lives_the_interval_is_that_life() -> None:
    assert advice.interval(200.0, 0.0, 100.0) == 100.0


@given(st.floats(1, 60), st.floats(0, 600), st.floats(3600, 1e6))
def test_no_interval_near_it_loses_less(save: float, restart: float, between: float) -> None:
    """Lost of each second, to first order: saving, and half an interval and a start per fault."""

    def lost(interval: float) -> float:
        cycle = interval + save
        return save / cycle + (cycle / 2 + restart) / (between + restart)

    best = advice.interval(save, restart, between)
    assert lost(best) <= min(lost(0.9 * best), lost(1.1 * best))


@pytest.mark.parametrize(
    ("seconds", "each", "steps"),
    [(472.0, 1.0, 470), (472.0, 0.5, 940), (5.0, 60.0, 1), (96, 1, 96)],
)
def test_an_interval_is_said_in_whole_steps_of_two_digits(
    seconds: float, each: float, steps: int
) -> None:
    assert advice.whole_steps(seconds, each) == steps


@pytest.mark.parametrize(("used", "minutes"), [(4.0, 5), (230.0, 5), (231.0, 10), (3600.0, 80)])
def test_a_time_limit_has_three_tenths_to_spare(used: float, minutes: int) -> None:
    assert advice.time_limit(used) == minutes


@pytest.mark.parametrize(("used", "asked"), [(0.02, 0.25), (0.741, 1.0), (2.0, 2.75), (7.0, 10.0)])
def test_memory_has_three_tenths_to_spare(used: float, asked: float) -> None:
    assert advice.memory(used) == asked


@pytest.mark.parametrize(("cpu", "cores"), [(1.0, 1), (11.9, 1), (12.1, 2), (38.0, 4)])
def test_cores_are_those_that_were_busy(cpu: float, cores: int) -> None:
    assert advice.cores(cpu, 10.0) == cores


def test_the_warning_is_long_enough_for_what_is_begun_and_a_checkpoint() -> None:
    assert advice.warning(0.5, 0.3, 0.4) == 10  # 1.3 x 1.2 + 5, up to tens
    assert advice.warning(2.0, 60.0, 20.0) == 120  # 1.3 x 82 + 5 = 111.6


def test_more_memory_is_a_third_over_what_was_used_or_twice_what_was_asked_for() -> None:
    assert advice.more_memory(8.0, None, 64.0) == 16.0
    assert advice.more_memory(8.0, 9.5, 64.0) == 13.0
    assert advice.more_memory(8.0, 2.0, 64.0) == 11.0, "what was too little was used up"
    assert advice.more_memory(8.0, None, 12.0) == 12.0
    assert advice.more_memory(8.0, None, 8.0) == advice.more_memory(8.0, 7.9, 4.0) == 8.0
