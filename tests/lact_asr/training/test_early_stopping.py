"""Early stopping: on what a model is for it waits, on a sum of scheduled weights it is fooled."""

import numpy as np
import pytest

from lact_asr.config.training import StoppingConfig
from lact_asr.training.early_stopping import should_stop_early, watch

STEPS = [0, 1000, 5000, 10_000, 25_000]  # the original expected run
TOTAL = [3.3, 5.2, 9.5, 7.8, 4.2]  # its loss: the weight of one part rises until step 5,000
DIVERGENCE = [3.5, 3.0, 2.0, 1.5, 0.5]  # that part by itself


def stopped_at(values: list[float], config: StoppingConfig, every: int = 500) -> int | None:
    """The step at which a run with these values between STEPS is stopped."""
    mark, stale = [], 0
    for step in range(0, STEPS[-1] + 1, every):
        value = float(np.interp(step, STEPS, values))
        mark, stale = watch(config, step, [value], mark, stale)
        if should_stop_early(config, step / STEPS[-1], stale):
            return step
    return None


ORIGINAL = StoppingConfig(patience=20, min_delta=0.001, warmup_steps=1000, not_before=0.0)


def test_the_original_own_run_is_stopped_at_11000_on_the_total_and_never_on_what_it_learns():
    assert stopped_at(TOTAL, ORIGINAL) == 11_000
    assert stopped_at(TOTAL, ORIGINAL.model_copy(update={"patience": 10})) == 6000
    assert stopped_at(TOTAL, ORIGINAL.model_copy(update={"warmup_steps": 0})) == 10_000
    assert stopped_at(DIVERGENCE, ORIGINAL) is None


def test_training_is_not_stopped_before_its_share():
    flat, early = [1.0] * 5, ORIGINAL.model_copy(update={"not_before": 0.7})
    assert stopped_at(flat, ORIGINAL) == 11_000
    assert stopped_at(flat, early) == 17_500
    assert stopped_at(flat, StoppingConfig()) is None


def test_a_gain_counts_from_min_delta_on_and_the_loss_decides_where_the_wer_stands():
    config = StoppingConfig(patience=1, warmup_steps=0)
    mark, stale = watch(config, 1, [0.5, 2.0], [], 0)
    assert (mark, stale) == ([0.5, 2.0], 0)
    assert watch(config, 2, [0.498, 3.0], mark, 0) == ([0.498, 3.0], 0)
    assert watch(config, 2, [0.4995, 2.0], mark, 0) == (mark, 1)
    assert watch(config, 2, [0.5, 1.9], mark, 0) == ([0.5, 1.9], 0)
    assert watch(config, 2, [0.51, 1.0], mark, 0) == (mark, 1)
    exact = StoppingConfig(warmup_steps=0, min_delta=0.25)
    assert watch(exact, 2, [0.25, 2.0], [0.5, 2.0], 0) == ([0.5, 2.0], 1), "a fall of delta is none"


def test_what_happens_in_the_warm_up_is_not_counted():
    config = StoppingConfig(patience=1, warmup_steps=100)
    assert watch(config, 99, [0.1], [], 0) == ([], 0)
    assert watch(config, 100, [0.9], [], 0) == ([0.9], 0)


@pytest.mark.parametrize("share", [0.39, 0.4])
def test_the_share_itself_is_late_enough(share):
    assert should_stop_early(StoppingConfig(patience=3), share, 3) is (share == 0.4)


def test_patience_of_one_ends_after_one_and_of_none_never():
    assert [should_stop_early(StoppingConfig(patience=1), 0.9, stale) for stale in (0, 1)] == [
        False,
        True,
    ]
    assert not should_stop_early(StoppingConfig(patience=0), 0.9, 99)
