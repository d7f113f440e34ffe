"""Recipes: settings of what training adds to model, data and optimiser, and named sets. No torch.

`PRESETS` are what a pipeline file's `training` is completed from. "modern" is what the best public
CTC recipes have in common; "founding" is this project's first recipe; "plain" leaves the defaults,
which add nothing: for corpora of an hour, where a few hundred steps decide.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from lact_asr.frozen import Frozen


def _playable(speeds: tuple[float, ...]) -> tuple[float, ...]:
    if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
        raise ValueError(f"write one or more speeds from 0.5 to 2, not {list(speeds)}")
    return speeds


Speeds = Annotated[tuple[float, ...], AfterValidator(_playable)]


class AugmentConfig(Frozen):
    """Speed perturbation of the waves and SpecAugment of the features; training data only."""

    speeds: Speeds = Field(
        (1.0,),
        description="Each micro-batch is played at one of these speeds (0.5 to 2), pitch included; "
        "[1.0] is as it was spoken",
    )
    frequency_masks: int = Field(0, ge=0, description="Stretches of mel bands hidden")
    frequency_width: int = Field(
        27, ge=0, le=80, description="Widest of them, bands of an 80-band spectrum"
    )
    time_masks: int = Field(0, ge=0, description="Stretches of time hidden, at most")
    time_width: float = Field(
        0.05, ge=0, le=1, description="Longest of them, as a share of the utterance"
    )
    time_total: float = Field(
        0.15, ge=0, le=1, description="All of them together at most, as a share of the utterance"
    )

    @property
    def hides(self) -> bool:
        """Whether there is anything to mask."""
        return bool(self.frequency_masks or self.time_masks)


class AverageConfig(Frozen):
    """Means of the weights, which are what is validated and kept."""

    decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Memory of a running mean of the weights (EMA), per step; it is validated and "
        "becomes the best checkpoint in their place; 0 is off",
    )
    last: int = Field(
        0,
        ge=0,
        description="At the end the mean of so many checkpoints, checkpoint_every steps apart, is "
        "validated too and becomes the best if it is; 0 is off",
    )


class CTCConfig(Frozen):
    """What is added to the CTC loss of the model's output."""

    intermediate: tuple[int, ...] = Field(
        (),
        description="Blocks (the first is 1) whose states are read out and judged by CTC too, such "
        "as [6] of 12; none is plain CTC",
    )
    intermediate_weight: float = Field(
        0.3, gt=0, lt=1, description="Share of the loss that these blocks have together"
    )
    consistency: float = Field(
        0.0,
        ge=0,
        description="CR-CTC: every utterance is heard twice, masked differently, and this much of "
        "the divergence between the two is added (published: 0.2, with time_masks 25 and "
        "time_total 0.375); a batch then has half as many utterances; 0 is off",
    )

    @property
    def views(self) -> int:
        """How often an utterance is heard in a step."""
        return 2 if self.consistency else 1

    def check(self, blocks: int) -> None:
        """ValueError if a model of so many blocks has no such intermediate ones."""
        wrong = [layer for layer in self.intermediate if not 1 <= layer < blocks]
        if wrong:
            raise ValueError(
                f"intermediate {wrong}: the model has {blocks} blocks, and the last is read out "
                f"anyway; choose among 1 to {blocks - 1}"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "modern": {
        "precision": "auto",
        "augment": {"speeds": (0.9, 1.0, 1.1), "frequency_masks": 2, "time_masks": 10},
        "average": {"decay": 0.999},
        "optim": {"method": "muon"},
    },
    # Batches of 12 utterances of up to 20 s; the notes' loss table ends at 100,000 steps.
    "founding": {
        "max_steps": 100_000,
        "batch_seconds": 240.0,
        "accumulate": 2,
        "max_duration": 20.0,
        "valid_every": 1000,
        "checkpoint_every": 5000,
        "precision": "fp32",
        "optim": {"learning_rate": 1e-4, "warmup_steps": 2000, "decay": "constant"},
    },
    "plain": {},
}


def completed(given: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and from the preset what it leaves open, block by block."""
    merged = {**preset, **given}
    for name in preset.keys() & given.keys():
        if isinstance(preset[name], Mapping) and isinstance(given[name], Mapping):
            merged[name] = completed(given[name], preset[name])
    return merged
