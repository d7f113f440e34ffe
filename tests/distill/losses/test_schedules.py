"""The original tables, digit by digit."""

import pytest

from distill.config.distillation import DistillConfig
from distill.losses.schedules import curriculum, kd_weight, rise

TOTAL = 25_000  # steps, in the original tables


@pytest.mark.parametrize(
    ("step", "weight"),
    [
        (0, 0.10),
        (1250, 0.25),
        (2500, 0.40),
        (3750, 0.55),
        (5000, 0.70),
        (10_000, 0.70),
        (25_000, 0.70),
    ],
)
def test_the_kd_weight_follows_the_original_table(step, weight):
    assert kd_weight(step / TOTAL, DistillConfig()) == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize(
    ("percent", "row"),
    [
        (0, (100, 0, 0, 0, 0)),
        (20, (100, 33, 33, 0, 0)),
        (50, (100, 100, 100, 33, 0)),
        (80, (100, 100, 100, 100, 33)),
        (100, (100, 100, 100, 100, 100)),
    ],
)
def test_the_curriculum_follows_the_original_table(percent, row):
    weights = curriculum("original", percent / 100)
    names = ("kd", "feature", "attention", "layerwise", "contrastive")
    assert tuple(round(100 * weights[name]) for name in names) == row
    assert tuple(weights) == names


@pytest.mark.parametrize(
    ("percent", "feature"),
    [(10, 0.0), (30, 66.7), (35, 83.3), (40, 100.0), (50, 100.0), (70, 100.0)],
)
def test_the_feature_loss_is_fully_on_by_40_percent(percent, feature):
    assert 100 * curriculum("original", percent / 100)["feature"] == pytest.approx(
        feature, abs=0.05
    )


def test_the_other_curricula():
    assert 100 * curriculum("ramp_0_60", 0.5)["feature"] == pytest.approx(83.3, abs=0.05)
    assert set(curriculum("all_on", 0.0).values()) == {1.0}


def test_progress_outside_0_to_1_and_a_ramp_of_no_length_are_fine():
    assert (
        curriculum("original", -0.5)["feature"] == 0
        and curriculum("original", 7)["contrastive"] == 1
    )
    assert rise(0.0, (0.0, 0.0)) == 1
    assert kd_weight(0.0, DistillConfig(kd_ramp=0)) == 0.7
