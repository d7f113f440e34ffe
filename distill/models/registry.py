"""Every model family by name: what checkpoints, the overfit gate and distillation build from."""

from collections.abc import Callable
from typing import Any

from torch import nn

from distill.config.foreign import ForeignConfig
from distill.config.models import BaselineConfig, TeacherConfig
from distill.models.baseline import Baseline
from distill.models.foreign import Foreign
from distill.models.teacher import Teacher
from lact_asr.model.interface import CTCModel
from lact_asr.model.recognizer import FAMILIES as RECOGNIZERS


def teacher(config: dict[str, Any], vocabulary_size: int) -> Teacher:
    """A fresh teacher from what a checkpoint stored."""
    return Teacher(TeacherConfig.model_validate(config), vocabulary_size)


def baseline(config: dict[str, Any], vocabulary_size: int) -> Baseline:
    """A fresh baseline from what a checkpoint stored."""
    return Baseline(BaselineConfig.model_validate(config), vocabulary_size)


def foreign(config: dict[str, Any], vocabulary_size: int) -> Foreign:
    """A model of another library from what a checkpoint stored."""
    return Foreign(ForeignConfig.model_validate(config), vocabulary_size)


FAMILIES: dict[str, Callable[[dict[str, Any], int], CTCModel]] = {
    **RECOGNIZERS,
    "teacher": teacher,
    "baseline": baseline,
    "foreign": foreign,
}


def count_layers(model: nn.Module) -> int:
    """Modules with a `weight` of two or more axes: convolutions and linear maps."""
    owned = ((name.rpartition(".")[2], weight) for name, weight in model.named_parameters())
    return sum(own == "weight" and weight.dim() >= 2 for own, weight in owned)
