"""Settings of speed perturbation and SpecAugment. No torch."""

from typing import Annotated

from pydantic import AfterValidator, Field

from lact_asr.config.base import Frozen, Listed


def _playable(speeds: tuple[float, ...]) -> tuple[float, ...]:
    if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
        raise ValueError(f"write one or more speeds from 0.5 to 2, not {list(speeds)}")
    return speeds


Speeds = Annotated[tuple[float, ...], Listed, AfterValidator(_playable)]


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
