"""Recipes: what is given beats the preset, block by block; modern as a whole over two ranks."""

from pathlib import Path

import pytest
import torch

from lact_asr.config.augment import AugmentConfig
from lact_asr.config.presets import PRESETS, merge_preset
from lact_asr.config.training import CTCConfig, TrainingConfig
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import processes
from lact_asr.model.forward import autocast
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from tests.lact_asr.tiny_runs import manifest, run, tiny
from tests.ranks import in_ranks


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_training(name):
    config = TrainingConfig.model_validate(PRESETS[name])
    assert set(PRESETS[name]) <= config.model_fields_set


def test_what_is_given_beats_the_preset_setting_by_setting():
    given = {"max_steps": 7, "augment": {"time_masks": 3}, "seed": 5}
    config = TrainingConfig.model_validate(merge_preset(given, PRESETS["modern"]))
    assert (config.max_steps, config.seed, config.precision) == (7, 5, "auto")
    assert config.augment.time_masks == 3
    assert config.augment.speeds == (0.9, 1.0, 1.1)
    assert PRESETS["modern"]["augment"]["time_masks"] == 10


def test_plain_adds_nothing_and_original_has_no_augmentation():
    assert TrainingConfig.model_validate(PRESETS["plain"]) == TrainingConfig()
    original = TrainingConfig.model_validate(PRESETS["original"])
    assert original.augment == TrainingConfig().augment
    assert not original.augment.hides
    assert original.optim.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("given", "seconds", "utterances", "steps", "epochs"),
    [
        ({}, None, 12, 100_000, None),
        ({"batch_seconds": 50.0, "epochs": 40}, 50.0, None, None, 40),
        ({"batch_utterances": 3, "max_steps": 9}, None, 3, 9, None),
    ],
)
def test_what_is_given_replaces_the_presets_other_way_to_say_it(
    given, seconds, utterances, steps, epochs
):
    written = TrainingConfig.model_validate(given).model_dump(exclude_unset=True)
    config = TrainingConfig.model_validate(merge_preset(written, PRESETS["original"]))
    assert (config.batch_seconds, config.batch_utterances) == (seconds, utterances)
    assert (config.max_steps, config.epochs) == (steps, epochs)
    assert TrainingConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    "given", [{"batch_seconds": 9.0, "batch_utterances": 2}, {"max_steps": None}]
)
def test_both_ways_or_none_are_refused(given):
    with pytest.raises(ValueError, match="write either"):
        TrainingConfig.model_validate(given)


@pytest.mark.parametrize("speeds", [[], [0.0, 1.0], [3.0]])
def test_speeds_that_cannot_be_played_are_refused(speeds):
    with pytest.raises(ValueError, match=r"one or more speeds from 0\.5 to 2, not \["):
        AugmentConfig(speeds=speeds)


@pytest.mark.parametrize(("wanted", "half"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_on_a_cpu_auto_means_float32(wanted, half):
    with autocast(torch.device("cpu"), wanted):
        assert torch.is_autocast_enabled("cpu") is half


def modern_rank(folder: Path) -> None:
    """Eight steps with everything on, stopped at five and resumed."""
    world = processes.start()
    train = read_manifest(folder / "tones.jsonl")
    short = {"max_steps": 8, "batch_seconds": 6.0, "optim": {"method": "muon"}}
    given = merge_preset(short, PRESETS["modern"])
    heard = CTCConfig(intermediate=(1,), consistency=0.2)
    for name, stops in (("whole", [99]), ("cut", [5, 99])):
        for stop in stops:
            objective = CTCObjective(tiny(layers=2, dropout=0.1), heard)
            run(folder / name, train, objective, stop_at=stop, **given)
    torch.save(objective.model.state_dict(), folder / f"{world.rank}.pt")


def test_the_modern_recipe_over_two_ranks_resumes_exactly_and_keeps_ranks_alike(tmp_path):
    manifest(tmp_path)
    assert in_ranks(modern_rank, tmp_path, 2) == [0, 0], (tmp_path / "rank1.log").read_text()
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole, cut = (tmp_path / name / "checkpoints/00000008" for name in ("whole", "cut"))
    for file in (checkpoint.WEIGHTS, "trainer.pt"):
        expected, found = checkpoint.load(whole / file), checkpoint.load(cut / file)
        if file == "trainer.pt":
            expected, found = expected["average"], found["average"]
        assert expected.keys() == found.keys() and expected
        assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)
