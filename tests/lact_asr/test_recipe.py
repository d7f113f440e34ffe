"""Recipes: what is given beats the preset, block by block, and every preset is valid."""

import pytest
import torch

from lact_asr.config import TrainingConfig
from lact_asr.objective import arithmetic
from lact_asr.recipe import PRESETS, completed


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_training(name):
    TrainingConfig.model_validate(PRESETS[name])


def test_what_is_given_beats_the_preset_setting_by_setting():
    given = {"max_steps": 7, "augment": {"time_masks": 3}, "seed": 5}
    config = TrainingConfig.model_validate(completed(given, PRESETS["modern"]))
    assert (config.max_steps, config.seed, config.precision) == (7, 5, "auto")
    assert config.augment.time_masks == 3
    assert config.augment.speeds == (0.9, 1.0, 1.1)
    assert PRESETS["modern"]["augment"]["time_masks"] == 10


def test_plain_adds_nothing_and_founding_has_no_augmentation():
    assert TrainingConfig.model_validate(PRESETS["plain"]) == TrainingConfig()
    founding = TrainingConfig.model_validate(PRESETS["founding"])
    assert founding.augment == TrainingConfig().augment
    assert not founding.augment.hides
    assert founding.optim.learning_rate == 1e-4


@pytest.mark.parametrize(("wanted", "half"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_on_a_cpu_auto_means_float32(wanted, half):
    with arithmetic(torch.device("cpu"), wanted):
        assert torch.is_autocast_enabled("cpu") is half
