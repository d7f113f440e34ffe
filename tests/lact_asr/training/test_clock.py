"""Where the wall time of a training goes: by a hand-moved clock, and in a real training."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.data.loader import Stream
from lact_asr.training import checkpoint, keeper, optim
from lact_asr.training.clock import PHASES, SAVING, STALLED, VALIDATING, Clock, metric
from lact_asr.training.speech import Speech
from tests.lact_asr.tiny_runs import run, tones

ROUNDING = 1e-6  # seconds


class Hand:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += seconds


def spent(**seconds: float) -> dict[str, float]:
    """What `take` gives, where the other phases took no time."""
    return {metric(phase): seconds.get(phase, 0.0) for phase in PHASES}


def test_time_belongs_to_the_innermost_phase_and_otherwise_is_useful() -> None:
    hand = Hand()
    clock = Clock(hand)
    hand.wait(1)
    with clock.phase(VALIDATING):
        hand.wait(2)
        with clock.phase(SAVING):
            hand.wait(4)
        hand.wait(8)
    hand.wait(16)
    assert clock.take() == spent(useful=17, validating=10, saving=4)
    hand.wait(32)
    assert clock.take() == spent(useful=32), "each second is told once"
    with clock.phase(STALLED):
        hand.wait(64)
    assert clock.stepping() == 17 + 32 + 64, "validating and saving are no part of a step"


def test_a_phase_left_by_an_error_has_ended() -> None:
    hand = Hand()
    clock = Clock(hand)
    with pytest.raises(OSError), clock.phase(SAVING):
        hand.wait(1)
        raise OSError
    hand.wait(2)
    assert clock.take() == spent(useful=2, saving=1)


def test_what_came_before_a_restart_is_forgotten() -> None:
    hand = Hand()
    clock = Clock(hand)
    hand.wait(5)
    clock.restart()
    hand.wait(3)
    assert clock.take() == spent(useful=3)


MOVES = st.lists(st.tuples(st.sampled_from([*PHASES, "take"]), st.integers(0, 1000)))


@given(MOVES)
def test_the_phases_together_are_all_the_time_there_was(
    moves: list[tuple[str, int]],
) -> None:
    hand = Hand()
    clock, told = Clock(hand), 0.0
    for phase, seconds in moves:
        if phase == "take":
            hand.wait(seconds)
            told += sum(clock.take().values())
        else:
            with clock.phase(phase):
                hand.wait(seconds)
    assert told + sum(clock.take().values()) == hand.at - 100.0


def slower(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> list[float]:
    """Make a function take longer; what each call took."""
    original, took = getattr(owner, name), list[float]()

    def slow(*given: Any, **named: Any) -> Any:
        began = time.monotonic()
        time.sleep(seconds)
        result = original(*given, **named)
        took.append(time.monotonic() - began)
        return result

    monkeypatch.setattr(owner, name, slow)
    return took


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The moments right before and right behind each reading of the clock."""
    original, moments = Clock.take, list[tuple[float, float]]()

    def take(clock: Clock) -> dict[str, float]:
        before = time.monotonic()
        spent = original(clock)
        moments.append((before, time.monotonic()))
        return spent

    monkeypatch.setattr(Clock, "take", take)
    return moments


@pytest.mark.parametrize("stop_at", [5, math.inf], ids=["told to stop", "to the end"])
def test_a_training_says_where_each_of_its_seconds_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: float
) -> None:
    slower(monkeypatch, optim, "build", 1.0)  # before the loop: none of its time
    waits = slower(monkeypatch, Stream, "take", 0.05)
    validations = slower(monkeypatch, Speech, "measure", 0.2)
    copies = slower(monkeypatch, keeper, "copied", 0.1)
    writes = slower(monkeypatch, checkpoint, "save", 0.0)  # aside: waited for at the end at most
    taken = watched(monkeypatch)
    train = tones(tmp_path, 4)
    began = time.monotonic()
    _, recorded = run(tmp_path, train, stop_at=stop_at, log_every=2, valid_every=3)
    told = [sum(line[metric(phase)] for phase in PHASES) for line in recorded.metrics]
    assert len(told) == len(taken)
    assert told[0] < taken[0][1] - began - 0.8
    for seconds, before, after in zip(told[1:], taken, taken[1:], strict=False):
        least, most = after[0] - before[1], after[1] - before[0]
        assert least - ROUNDING <= seconds <= most + ROUNDING
    sums = {phase: sum(line[metric(phase)] for line in recorded.metrics) for phase in PHASES}
    for phase, took in ((STALLED, waits), (VALIDATING, validations)):
        assert 0 <= sums[phase] - sum(took) < 0.05 * len(took), phase  # what is around the call
    assert 0 <= sums[SAVING] - sum(copies) < sum(writes) + 0.05 * len(copies)
    assert len(copies) == len(writes) >= 3
    assert len(waits) == (5 if stop_at == 5 else 6) and len(validations) == len(waits) - 4
