"""Settings: sizes by name, mistakes refused in words, no torch."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from distill.config.distillation import DistillConfig
from distill.config.models import SIZES, BaselineConfig, TeacherConfig, named_size
from distill.config.router import RouterConfig


def test_settings_are_read_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None;"
        " import distill.config.distillation, distill.config.router, distill.losses.schedules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_setting_says_what_it_means():
    for model in (TeacherConfig, BaselineConfig, DistillConfig, RouterConfig):
        for name, field in model.model_fields.items():
            assert field.description and len(field.description) > 15, f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (TeacherConfig, {"heads": 7}, "even multiple of heads"),
        (TeacherConfig, {"cepstra": 90}, "cannot exceed mels"),
        (TeacherConfig, {"trunk_blocks": (2, 6, 2)}, "trunk_blocks go from"),
        (TeacherConfig, {"depth": 3}, "Extra inputs are not permitted"),
        (BaselineConfig, {"kernel": 4}, "must be odd"),
        (DistillConfig, {"alpha": 1.5}, "less than or equal to 1"),
        (DistillConfig, {"alpha": 1, "blank_policy": "nonblank"}, "never teaches silence"),
        (DistillConfig, {"alpha": 1, "kd": "guided"}, "peaks only, never silence"),
        (
            DistillConfig,
            {"feature_weight": 1, "router": {"kind": "recommended", "layers": 1}},
            "leaves nothing to choose from: write router.kind: off",
        ),
        (DistillConfig, {"kd": "sequence", "top_k": 8}, "top_k belongs to"),
        (DistillConfig, {"temperature": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_words(model, change, message):
    with pytest.raises(ValidationError, match=message):
        model(**change)


def test_a_named_size_is_changed_and_checked_as_a_whole():
    assert named_size("teacher", "tiny", {"blocks": 2}).blocks == 2
    assert named_size("teacher", "tiny", {}) == SIZES["teacher"]["tiny"]
    with pytest.raises(ValueError, match="sizes are tiny, default"):
        named_size("teacher", "huge", {})
    with pytest.raises(ValidationError, match="even multiple"):
        named_size("teacher", "tiny", {"hidden": 150})
