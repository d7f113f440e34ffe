"""What is paid for batches of like length: padding, and utterances that keep meeting each other."""

from itertools import islice, pairwise

import numpy as np
import pytest

from bench.data import met_again, padding, waiting
from lact_asr.config.budget import Budget
from lact_asr.data.batch_plan import Position, batches_from, epoch_plan

# Seconds at 0, 5, ... 100 % of the 1,519 utterances of Mini LibriSpeech's train-clean-5.
MINI_LIBRISPEECH = (
    1.87, 4.07, 6.32, 8.63, 10.0, 11.34, 12.26, 12.73, 13.22, 13.63, 13.92,
    14.2, 14.49, 14.7, 14.93, 15.17, 15.37, 15.53, 15.78, 16.05, 17.27,
)  # fmt: skip


def durations(count):
    places = np.random.default_rng(0).uniform(0, 20, count)
    return np.interp(places, np.arange(21), MINI_LIBRISPEECH)


@pytest.mark.parametrize(
    ("count", "batch_seconds", "ranks"),
    [
        (200, 40, 1),
        (200, 40, 2),
        (1300, 180, 1),  # what mini_librispeech.yaml has
        (1300, 80, 4),
        (28_000, 320, 1),
        (28_000, 500, 4),  # librispeech_base.yaml
        (280_000, 960, 8),
        (280_000, 300, 16),  # librispeech_large.yaml
    ],
)
def test_padding_is_at_most_4_percent_and_at_most_15_percent_of_pairs_meet_again(
    count, batch_seconds, ranks
):
    d = durations(count)
    plans = [epoch_plan(d, Budget(batch_seconds), 0, epoch, ranks) for epoch in range(8)]
    assert np.mean([padding(plan, d) for plan in plans]) <= 0.04
    assert np.mean([met_again(*pair) for pair in pairwise(plans)]) <= 0.15


def test_ranks_wait_little_for_each_other():
    d = durations(28_000)
    assert waiting(epoch_plan(d, Budget(500), 0, 1, 8), d) < 0.02


def test_a_corpus_of_a_few_batches_pays_in_padding_not_in_pairs_that_meet_again():
    d = durations(200)
    plans = [epoch_plan(d, Budget(320), 0, epoch, 1) for epoch in range(6)]
    again = [met_again(*pair) for pair in pairwise(plans)]
    assert np.mean(again) <= 0.15  # of 10 random batches: 0.12
    assert max(padding(plan, d) for plan in plans) < 0.25  # random: 0.3


def test_pairs_that_meet_again_are_counted_over_all_ranks():
    first = [[np.array([0, 1]), np.array([4, 5])], [np.array([2, 3]), np.array([6, 7])]]
    second = [[np.array([0, 2]), np.array([1, 5])], [np.array([4, 6]), np.array([3, 7])]]
    assert met_again(first, first) == 1.0
    assert met_again(first, second) == pytest.approx(4 / 12)  # 0-2, 1-3, 4-6, 5-7
    assert padding(first, np.array([1.0, 2, 2, 2, 3, 3, 3, 3])) == pytest.approx(1 / 20)


def test_a_run_of_an_old_checkpoint_keeps_its_order_to_the_end():
    d = durations(60)
    old = {"epoch": 1, "stretches": [{"world_size": 2, "batch_seconds": 80.0, "done": 3}]}
    position = Position.from_dict(old)
    assert position.rule == "pools"
    going_on = list(islice(batches_from(position, d, Budget(80.0), 3, 1, 2), 12))
    expected = [*epoch_plan(d, Budget(80.0), 3, 1, 2, "pools")[1][3:]]
    expected += epoch_plan(d, Budget(80.0), 3, 2, 2, "pools")[1]
    for (batch, _), then in zip(going_on, expected, strict=False):
        assert batch.tolist() == then.tolist()
    assert len(expected) < 12  # an epoch and more
    assert going_on[-1][1].rule == "pools"
    assert Position.from_dict(going_on[-1][1].to_dict()) == going_on[-1][1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_batch_may_be_counted_in_utterances(ranks):
    d = durations(600)
    plan = epoch_plan(d, Budget(None, 12), 0, 1, ranks)
    sizes = [len(batch) for rank in plan for batch in rank]
    assert max(sizes) == 12
    assert sum(sizes) == 600
    assert len({len(rank) for rank in plan}) == 1
    assert len(plan[0]) * ranks <= 54  # nearly all are whole: 600 / 12 = 50
    assert padding(plan, d) < 0.1


def test_going_on_with_batches_counted_otherwise_takes_every_utterance_once():
    d = durations(90)
    first = list(islice(batches_from(Position(), d, Budget(80.0), 0, 0, 1), 4))
    seen = np.concatenate([batch for batch, _ in first]).tolist()
    position = Position.from_dict(first[-1][1].to_dict())
    for batch, behind in batches_from(position, d, Budget(None, 5), 0, 0, 1):
        if behind.epoch:
            break
        assert len(batch) <= 5
        seen += batch.tolist()
    assert sorted(seen) == list(range(90))
