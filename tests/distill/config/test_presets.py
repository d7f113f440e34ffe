"""The named ways to train a teacher, setting by setting, as a pipeline file gets them."""

import pytest
import torch
from torch import nn

from distill.config.presets import TEACHER
from jobs.kinds import teacher
from lact_asr.config.training import TrainingConfig
from tests.distill.tiny_models import tiny_teacher


def settings(preset: str, **written: object) -> teacher.Settings:
    return teacher.Settings(train="t.jsonl", dev="d.jsonl", preset=preset, **written)


@pytest.mark.parametrize(
    ("preset", "rate", "clip", "warmup", "absolute"),
    [
        ("recommended", 1e-4, 1.0, 2000, None),
        ("standard", 1e-4, 1.0, 0, None),
        ("emergency", 1e-5, 0.5, 0, 10.0),
    ],
)
def test_each_preset_is_what_its_source_says(preset, rate, clip, warmup, absolute):
    training = settings(preset).training
    optim = training.optim
    assert (optim.learning_rate, optim.clip_norm, optim.warmup_steps) == (rate, clip, warmup)
    assert optim.betas == (0.9, 0.999 if preset == "standard" else 0.98)
    assert training.guard.skip_above == absolute
    original = preset != "recommended"
    assert training.guard.skip_ratio == (None if original else 10)
    assert training.stopping.patience == (0 if original else 20)
    assert training.batch_utterances == (2 if original else None)
    assert training.batch_seconds == (None if original else TrainingConfig().batch_seconds)
    model = settings(preset).configuration()
    assert (model.norm, model.output_cap, model.qk_norm, model.logit_cap) == (
        ("batch", "clamp", False, None) if original else ("group", "soft", True, 50.0)
    )
    assert model.attention_dropout == (0.1 if original else 0.0)
    starts = {"recommended": (None, 1), "standard": (0.01, 1), "emergency": (0.001, 0.5)}
    assert (model.linear_std, model.conv_scale) == starts[preset]


def test_recommended_is_the_default_and_what_is_written_wins():
    assert teacher.Settings(train="t", dev="d").preset == "recommended"
    mixed = settings(
        "emergency",
        training={"optim": {"learning_rate": 3e-4}, "guard": {"skip_above": None}},
        model={"norm": "group"},
    )
    assert mixed.training.optim.learning_rate == 3e-4
    assert mixed.training.optim.clip_norm == 0.5
    assert mixed.training.guard.skip_above is None
    assert (mixed.configuration().norm, mixed.configuration().qk_norm) == ("group", False)
    assert mixed.configuration(dropout=0.0).dropout == 0
    assert settings("plain").training == TrainingConfig()


@pytest.mark.parametrize("preset", TEACHER)
def test_a_stored_step_reads_back_as_it_was(preset):
    once = settings(preset, model={"blocks": 2})
    again = teacher.Settings.model_validate_json(once.model_dump_json())
    assert again == once
    assert again.configuration() == once.configuration()


def test_the_start_of_the_layers_is_the_presets():
    plain, original = tiny_teacher(), tiny_teacher(linear_std=0.001, conv_scale=0.5)
    pairs = zip(plain.named_modules(), original.modules(), strict=True)
    for (name, module), other in pairs:
        if isinstance(module, (nn.Conv1d, nn.Conv3d)):
            ratio = float(other.weight.detach().std() / module.weight.detach().std())
            assert ratio == pytest.approx(0.5), name
        elif name.startswith("fusion.projections") and isinstance(module, nn.Linear):
            bound = 0.5 * (6 / sum(module.weight.shape)) ** 0.5  # xavier with a gain of 0.5
            assert bound * 0.9 < other.weight.abs().max() <= bound, name
        elif isinstance(module, nn.Linear):
            assert float(other.weight.detach().std()) == pytest.approx(0.001, rel=0.15), name
    assert torch.equal(tiny_teacher().head.weight, plain.head.weight)
